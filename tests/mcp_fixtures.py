"""Fixtures that the tests of tools and server share; their conftest files import them.

Every test that takes `client` runs twice: as a client of protocol revision 2026-07-28 and as one of
2025-11-25.
"""

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, ImageContent, TextContent

from server.access import transport_security
from server.app import PathSynthServer, build_server
from server.http import MCP_PATH, http_app, listen, uvicorn_server
from server.metrics import Metrics
from tests.fakes import FakeStudio

REPOSITORY = Path(__file__).resolve().parents[1]


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


@contextmanager
def served(
    studio: FakeStudio,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    allowed: Sequence[str] = (),
    metrics: Metrics | None = None,
) -> Iterator[str]:
    """`studio` over HTTP on a free port, by a thread of this process; gives its address without a path."""
    metrics = metrics or Metrics()
    with listen(host, 0) as listener:
        bound, port = listener.getsockname()
        security = transport_security(host, allowed)
        answering = build_server(studio, metrics=metrics)
        metrics.watch(answering.queue)
        app = http_app(answering, studio, metrics, security, token)
        server = uvicorn_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{bound if bound != '0.0.0.0' else '127.0.0.1'}:{port}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextmanager
def served_apart(home: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A `FakeStudio` over HTTP by a process of its own; gives its address without a path, and the process."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.serve_fake", "http", str(home)],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=REPOSITORY,
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
        finally:
            process.kill()


@pytest.fixture(params=["memory", "stdio", "http"])
async def any_client(request: pytest.FixtureRequest, studio: FakeStudio, mode: str) -> AsyncIterator[Client]:
    """A client on each transport in both protocol eras: in memory, over the pipes of a subprocess, over
    HTTP. Each server makes the same tiles; only images of `studio` are seen by the first and the last."""
    if request.param == "memory":
        async with Client(build_server(studio), mode=mode) as connected:
            yield connected
    elif request.param == "stdio":
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-m", "tests.serve_fake", "stdio", str(studio.store.root)],
            env=dict(os.environ),
            cwd=REPOSITORY,
        )
        async with Client(parameters, mode=mode) as connected:
            yield connected
    else:
        with served(studio) as address:
            async with Client(address + MCP_PATH, mode=mode) as connected:
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
