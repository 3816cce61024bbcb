"""The built wheel in an environment of its own, run from an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
SECONDS = 300


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that must succeed; its errors are shown when it does not."""
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{command} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment(home: Path) -> dict[str, str]:
    """The environment without anything that leads back to this source tree, images in `home`."""
    leading_back = {"PYTHONPATH", "PYTHONHOME"} | {
        name for name in os.environ if name.startswith("PATHSYNTH_")
    }
    kept = {name: value for name, value in os.environ.items() if name not in leading_back}
    return kept | {"PATHSYNTH_HOME": str(home)}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to work in."""

    wheel: Path
    environment: Path
    empty: Path
    variables: dict[str, str]

    def script(self, name: str) -> Path:
        scripts = sysconfig.get_path("scripts", "venv", {"base": str(self.environment)})
        return Path(scripts) / f"{name}{sysconfig.get_config_var('EXE') or ''}"

    def run(self, name: str, *arguments: str) -> str:
        """Output of an installed script, `python` among them."""
        return run(self.script(name), *arguments, cwd=self.empty, env=self.variables)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from the source distribution, not from the source tree."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, REPOSITORY, cwd=target)
    (source,) = target.glob("*.tar.gz")
    (built,) = target.glob("*.whl")
    assert source.name == f"pathsynth-{VERSION}.tar.gz"
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a new environment, with the dependencies of the running one through a path file.

    The new environment's own packages come first, and path files in the folders that a path file names, such
    as that of an editable installation of this project, have no effect. The wheel is installed before those
    folders can be seen: pip would take the editable installation for the wheel.
    """
    folder = tmp_path_factory.mktemp("installed")
    empty = folder / "empty"
    empty.mkdir()
    made = Installed(wheel, folder / "environment", empty, clean_environment(folder / "home"))
    run(sys.executable, "-m", "venv", "--without-pip", made.environment, cwd=folder)
    pip = (sys.executable, "-m", "pip", "--python", made.script("python"), "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=empty, env=made.variables)
    own = Path(made.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "dependencies.pth").write_text("\n".join(folders) + "\n", encoding="utf-8")
    return made


def test_the_wheel_holds_the_three_houses_and_all_weights_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    weights = {f"pathsynth/weights/{name}" for name in files_of(REPOSITORY / "weights")}
    assert weights
    assert {name for name in names if name.startswith("pathsynth/weights/")} == weights
    metadata = f"pathsynth-{VERSION}.dist-info"
    assert {name.split("/")[0] for name in names} == {"pathsynth", "server", "tools", metadata}
    assert f"{metadata}/licenses/LICENSE" in names


def test_the_wheel_generates_a_verified_tile_from_an_empty_folder(installed: Installed) -> None:
    located = installed.run(
        "python",
        "-c",
        "import json, pathsynth, server, tools, pathsynth.weights as w;"
        "print(json.dumps([pathsynth.__file__, server.__file__, tools.__file__, str(w.default_folder())]))",
    )
    for path in json.loads(located):
        assert Path(path).is_relative_to(installed.environment)

    answer = json.loads(installed.run("pathsynth", "generate", "adipose tissue", "--json", "--size", "28"))
    (tile,) = answer["tiles"]
    (file,) = answer["files"]
    assert answer["verified"] is True
    assert tile["verified"] is True
    assert tile["tissue"] == answer["tissue"] == "ADI"
    assert tile["size"] == 28
    assert tile["confidence"] >= answer["min_confidence"]
    assert Path(file).is_relative_to(installed.variables["PATHSYNTH_HOME"])
    assert Path(file).read_bytes().startswith(b"\x89PNG")
    assert list(installed.empty.iterdir()) == []


def test_both_commands_of_the_wheel_know_their_version(installed: Installed) -> None:
    assert installed.run("pathsynth", "--version") == f"pathsynth {VERSION}\n"
    assert installed.run("pathsynth-mcp", "--version") == f"pathsynth-mcp {VERSION}\n"
    assert installed.run("pathsynth", "mcp", "--version") == f"pathsynth-mcp {VERSION}\n"


def test_a_failure_of_the_installed_command_is_its_exit_code(installed: Installed) -> None:
    done = subprocess.run(
        [installed.script("pathsynth"), "generate", "adipose tissue", "--tissue", "XXX", "--json"],
        cwd=installed.empty,
        env=installed.variables,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    assert "XXX" in json.loads(done.stdout)["error"]
