"""The shape of the project: which house imports which, where tissues are spelled, what the weights hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pathsynth.tissues import CODES
from pathsynth.weights import Manifest

REPOSITORY = Path(__file__).resolve().parents[1]
WEIGHTS = REPOSITORY / "weights"
HOUSES = ("pathsynth", "server", "tools")
MAX_WEIGHTS_BYTES = 95_000_000
FORBIDDEN = {
    "pathsynth": {"server", "tools", "tests", "mcp", "mcp_types"},
    "tools": {"server", "tests"},
    "server": {"tests"},
}


def trees(house: str) -> Iterator[tuple[str, ast.Module]]:
    """Every module of a house as (path inside the repository, syntax tree)."""
    for path in sorted((REPOSITORY / house).rglob("*.py")):
        yield path.relative_to(REPOSITORY).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of the packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names.add(node.module.split(".")[0])
    return names


def strings(tree: ast.Module) -> list[str]:
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


@pytest.mark.parametrize("house", HOUSES)
def test_imports_run_one_way_from_server_over_tools_to_pathsynth(house: str) -> None:
    found = dict(trees(house))
    assert found
    wrong = {path: sorted(imported(tree) & FORBIDDEN[house]) for path, tree in found.items()}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_import_check_sees_every_form_of_import() -> None:
    tree = ast.parse("import mcp.types\nfrom tools import x\ndef f():\n    import server\nfrom . import y")
    assert imported(tree) == {"mcp", "tools", "server"}


def test_only_the_table_of_tissues_spells_a_tissue_code() -> None:
    spelled = {
        path: sorted(set(strings(tree)) & set(CODES)) for house in HOUSES for path, tree in trees(house)
    }
    assert spelled.pop("pathsynth/tissues.py") == sorted(CODES)
    assert {path: codes for path, codes in spelled.items() if codes} == {}


def test_the_weights_fit_into_a_wheel() -> None:
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) < MAX_WEIGHTS_BYTES


def test_the_manifest_lists_every_file_of_the_weights_with_its_size() -> None:
    manifest = Manifest.model_validate_json((WEIGHTS / "manifest.json").read_bytes())
    files = {path.relative_to(WEIGHTS).as_posix(): path for path in WEIGHTS.rglob("*") if path.is_file()}
    assert files.keys() >= {"manifest.json", "MODEL_CARD.md"}
    described = {name: path.stat().st_size for name, path in files.items()}
    del described["manifest.json"], described["MODEL_CARD.md"]
    assert {name: entry.bytes for name, entry in manifest.files.items()} == described
