"""The pages that `make docs` builds into a site."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from server.app import build_server
from tests.fakes import FakeStudio

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((REPOSITORY / "zensical.toml").read_text(encoding="utf-8"))["project"]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def script() -> ModuleType:
    """The script `docs/write_pages.py`, which is not part of a package."""
    specification = importlib.util.spec_from_file_location(
        "write_pages", REPOSITORY / "docs" / "write_pages.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


async def test_the_reference_names_everything_the_server_offers(script: ModuleType, tmp_path: Path) -> None:
    page = str(await script.reference())

    server = build_server(FakeStudio(tmp_path))
    for tool in await server.list_tools():
        section = page.split(f"### `{tool.name}`", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]
        arguments = section.split("Answers with", 1)[0]
        for argument, schema in tool.input_schema["properties"].items():
            (row,) = [line for line in arguments.splitlines() if line.startswith(f"| `{argument}` |")]
            assert schema["description"][:20] in row
    for resource in await server.list_resources():
        assert f"`{resource.uri}`" in page
    for template in await server.list_resource_templates():
        assert f"`{template.uri_template}`" in page
    for prompt in await server.list_prompts():
        assert f"### `{prompt.name}`" in page


def test_every_page_is_in_the_menu_and_every_link_leads_somewhere(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PAGES", tmp_path / "pages")
    assert script.main() == 0

    pages = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "pages").glob("*.md")}
    assert {name for entry in SETTINGS["nav"] for name in entry.values()} == set(pages)
    for text in pages.values():
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert target.startswith("https://") or (tmp_path / "pages" / target).is_file(), target
