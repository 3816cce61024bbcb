"""The weights folder: safetensors, their configurations and reports, and `manifest.json` with a SHA-256 for
each file.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from pathsynth.errors import WeightsError

WEIGHTS_VARIABLE = "PATHSYNTH_WEIGHTS"
MANIFEST = "manifest.json"
TILE_PARTS: Final = ("layout", "sketch", "lora/default", "contexts", "wordings")  # what first tiles come from
_NOT_LISTED = {MANIFEST, "MODEL_CARD.md"}
_EARLIER_KEPT = 12
_LOADING_FAILED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Read a model below `path`; whatever its libraries raise about it becomes a WeightsError."""
    try:
        yield
    except _LOADING_FAILED as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(
            f"{path} cannot be loaded ({lines[0].rstrip('.:')[:200]}); install PathSynth again."
        ) from error


class FileEntry(BaseModel):
    """One file of the folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What the folder holds: files by path, and of each component how it was trained and on what data.

    `earlier` has the parts of the weights that were here before, by their `model`: a report that was measured
    with those still holds where the parts that it is about are the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    files: dict[str, FileEntry]
    components: dict[str, dict[str, Any]]
    earlier: dict[str, dict[str, str]] = {}

    @property
    def model(self) -> str:
        """Short hash of all model files: what `model` means in every answer. Reports do not change it."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.files.items()):
            if not name.startswith("reports/"):
                digest.update(f"{name} {entry.sha256}\n".encode())
        return digest.hexdigest()[:12]

    @property
    def parts(self) -> dict[str, str]:
        """Short hash of the files of each component."""
        found = {}
        for component in self.components:
            digest = hashlib.sha256()
            for name, entry in sorted(self.files.items()):
                if belongs(name, component):
                    digest.update(f"{name} {entry.sha256}\n".encode())
            found[component] = digest.hexdigest()[:12]
        return found

    def measured(self, model: str, components: Collection[str]) -> bool:
        """Whether what was measured with the weights `model` holds for these: they are the same, or those of
        `components` are that either of them has.
        """
        if model == self.model:
            return True
        before, now = self.earlier.get(model), self.parts
        return before is not None and all(before.get(name) == now.get(name) for name in components)


def belongs(file: str, component: str) -> bool:
    """Whether a file of the folder is one of a component's."""
    return file.startswith((f"{component}/", f"{component}."))


def default_folder() -> Path:
    """`PATHSYNTH_WEIGHTS`, else the folder that the wheel carries, else `weights/` of the source tree."""
    from_environment = os.environ.get(WEIGHTS_VARIABLE)
    if from_environment:
        return Path(from_environment).expanduser()
    carried = Path(__file__).parent / "weights"
    return carried if carried.is_dir() else Path(__file__).parent.parent / "weights"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a weights folder; the files it lists are not looked at.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WeightsError(
            f"There are no weights in {folder} (no {MANIFEST}); "
            f"install PathSynth again or set {WEIGHTS_VARIABLE} to a folder that has them."
        ) from error
    except ValidationError as error:
        raise WeightsError(f"{path} is damaged; install PathSynth again.") from error


class Weights:
    """A weights folder whose every listed file was found and compared with the manifest.

    Raises:
        WeightsError: the folder or a file is missing, or a file differs from the manifest.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self.manifest = read_manifest(self.folder)
        self._verify()

    def _verify(self) -> None:
        for name, entry in self.manifest.files.items():
            path = self.folder / name
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise WeightsError(
                    f"The weights in {self.folder} lack {name}, which their manifest lists; "
                    "install PathSynth again."
                ) from error
            if found != entry.sha256:
                raise WeightsError(
                    f"{path} is damaged (SHA-256 {found[:12]} instead of {entry.sha256[:12]}); "
                    "install PathSynth again."
                )

    @cached_property
    def model(self) -> str:
        """`Manifest.model` of these weights."""
        return self.manifest.model

    def has(self, component: str) -> bool:
        """Whether a component (validator, judge, layout, lora ...) is part of these weights."""
        return component in self.manifest.components

    def path(self, name: str) -> Path:
        """Path of a file or folder inside the weights."""
        return self.folder / name


def looks_whole(folder: Path | None = None) -> bool:
    """Whether every file that the manifest lists is there with its size; reads the manifest only."""
    folder = folder or default_folder()
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        return all((folder / name).stat().st_size == entry.bytes for name, entry in manifest.files.items())
    except (OSError, ValidationError):
        return False


def write_manifest(folder: Path, components: Mapping[str, Mapping[str, Any]]) -> Manifest:
    """Hash every file of `folder` and write its manifest; components not named keep what was said of them.

    Of the weights before, it keeps those that a report was measured with, and the latest others.
    """
    known: dict[str, dict[str, Any]] = {}
    earlier: dict[str, dict[str, str]] = {}
    if (folder / MANIFEST).is_file():
        before = read_manifest(folder)
        known = before.components
        earlier = {model: parts for model, parts in before.earlier.items() if model != before.model}
        earlier[before.model] = before.parts
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _NOT_LISTED:
            content = path.read_bytes()
            files[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    manifest = Manifest(
        files=files, components=known | {name: dict(value) for name, value in components.items()}
    )
    earlier.pop(manifest.model, None)
    kept = {*list(earlier)[-_EARLIER_KEPT:], *_reported(folder)}
    earlier = {model: parts for model, parts in earlier.items() if model in kept}
    manifest = manifest.model_copy(update={"earlier": earlier})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def _reported(folder: Path) -> set[str]:
    """The weights that the reports in `folder` were measured with."""
    found: set[str] = set()
    for path in (folder / "reports").glob("*.json"):
        with suppress(ValueError):  # what is no report says so to whoever reads it
            report = json.loads(path.read_bytes())
            if isinstance(report, dict) and "model" in report:
                found.add(report["model"])
    return found
