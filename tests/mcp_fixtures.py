"""Fixtures that the tests of tools and server share; their conftest files import them.

Every test that takes `client` runs twice: as a client of protocol revision 2026-07-28 and as one of
2025-11-25.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mcp import Client
from mcp_types import CallToolResult, ImageContent, TextContent

from server.app import PathSynthServer, build_server
from tests.fakes import FakeStudio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def studio(tmp_path: Path) -> FakeStudio:
    return FakeStudio(tmp_path / "home")


@pytest.fixture
def pictures_folder(tmp_path: Path) -> Path:
    """The one folder from which the server may read image paths."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    return folder


@pytest.fixture
def server(studio: FakeStudio, pictures_folder: Path) -> PathSynthServer:
    return build_server(studio, image_folders=[pictures_folder])


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> str:
    """How the client connects: `auto` speaks 2026-07-28, `legacy` the revision with a handshake,
    2025-11-25."""
    return str(request.param)


@pytest.fixture
async def client(server: PathSynthServer, mode: str) -> AsyncIterator[Client]:
    async with Client(server, mode=mode) as connected:
        yield connected


def texts(result: CallToolResult) -> list[str]:
    """The text blocks of a result."""
    return [block.text for block in result.content if isinstance(block, TextContent)]


def images(result: CallToolResult) -> list[ImageContent]:
    """The image blocks of a result."""
    return [block for block in result.content if isinstance(block, ImageContent)]


def refusal(result: CallToolResult) -> str:
    """The sentence of a failed call, after checking that it is fit for a client."""
    assert result.is_error
    (sentence,) = texts(result)
    assert 0 < len(sentence) < 400
    assert "\n" not in sentence
    for noise in ("pydantic", "http", "Traceback", "Error executing", 'File "'):
        assert noise not in sentence
    return sentence
