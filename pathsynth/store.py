"""The image store: content-addressed PNG files with a JSON record each, whole at every moment.

`images/<id>.png` holds the pixels, `records/<id>.json` what is known of them, and the PNG repeats the record
in its metadata. The id is derived from the pixels alone, so the same tile has the same id whoever saved its
file. An image counts as stored when both files are there; the PNG is written first, each by way of a
temporary file and a rename, so that a killed process leaves nothing half written.
"""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from platformdirs import user_data_path
from pydantic import ValidationError

from pathsynth.errors import ImageError, StoreError
from pathsynth.images import Picture, encode_png, read_image
from pathsynth.likeness import LikenessIndex, appearance, difference
from pathsynth.provenance import provenance_text
from pathsynth.records import IMAGE_ID_PATTERN, TileRecord

HOME_VARIABLE: Final = "PATHSYNTH_HOME"

_ID_LENGTH: Final = 16
_PARTIAL: Final = ".partial"
_STALE_SECONDS: Final = 3600
_DISK_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def home() -> Path:
    """The folder for images and state: `PATHSYNTH_HOME`, else the platform's user data folder."""
    from_environment = os.environ.get(HOME_VARIABLE)
    if from_environment:
        return Path(from_environment).expanduser()
    return user_data_path("pathsynth", appauthor=False)


def image_id_of(pixels: npt.NDArray[np.uint8]) -> str:
    """The id of an image (H, W, 3): 16 hexadecimal digits of the SHA-256 over its shape and its RGB bytes."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode("ascii"))
    digest.update(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())
    return digest.hexdigest()[:_ID_LENGTH]


@dataclass(frozen=True)
class StoredImage:
    """A stored image whose pixels match its id: the path of its PNG and its record."""

    path: Path
    record: TileRecord
    _pixels: npt.NDArray[np.uint8] = field(repr=False, compare=False)

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The image, uint8 RGB (S, S, 3), as a copy."""
        return self._pixels.copy()


class ImageStore:
    """A store below `root`, by default `home()`. Creating the object touches no disk.

    Several threads and processes may share a store.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()
        self._images = self.root / "images"
        self._records = self.root / "records"
        self._lock = threading.Lock()
        self._is_swept = False
        self._likenesses = LikenessIndex()

    def put(self, image: npt.NDArray[np.uint8], record: Callable[[str], TileRecord]) -> StoredImage:
        """Store a tile (S, S, 3) with the record that `record` makes for its id.

        The same pixels again keep the latest record. The PNG carries the record as `pathsynth.provenance`
        writes it.

        Raises:
            StoreError: the disk is full or the folder cannot be written. Nothing of the tile is left then,
                and what was stored before is as it was.
            ValueError: the record names another id.
        """
        pixels = np.array(image, dtype=np.uint8)
        image_id = image_id_of(pixels)
        entry = record(image_id)
        if entry.image_id != image_id:
            raise ValueError(f"the record names {entry.image_id}, the image is {image_id}")
        png = encode_png(pixels, provenance_text([entry]))
        text = entry.model_dump_json(indent=1) + "\n"
        image_path, record_path = self._paths(image_id)
        with self._lock, self._writing():
            self._prepare()
            before = image_path.read_bytes() if record_path.exists() and image_path.exists() else None
            is_done = False
            try:
                if before != png:
                    _write_whole(image_path, png)
                _write_whole(record_path, text.encode("utf-8"))
                is_done = True
            finally:
                if not is_done:
                    with suppress(OSError):
                        _restore(image_path, before)
        return StoredImage(image_path, entry, pixels)

    def get(self, image_id: str) -> StoredImage:
        """A stored image, its pixels checked against its id.

        Raises:
            StoreError: the id is malformed or unknown, or the files are damaged.
        """
        if re.fullmatch(IMAGE_ID_PATTERN, image_id) is None:
            raise StoreError(
                f"{image_id[:40]!r} is not an image id; an id is {_ID_LENGTH} hexadecimal digits."
            )
        image_path, record_path = self._paths(image_id)
        if not (record_path.is_file() and image_path.is_file()):
            raise StoreError(
                f"There is no stored image {image_id}; it may belong to another {HOME_VARIABLE}."
            )
        try:
            entry = TileRecord.model_validate_json(record_path.read_bytes())
            pixels = read_image(image_path)
        except (ImageError, ValidationError, OSError) as error:
            raise StoreError(_damaged(image_id)) from error
        if image_id_of(pixels) != image_id or entry.image_id != image_id:
            raise StoreError(_damaged(image_id))
        return StoredImage(image_path, entry, pixels)

    def ids(self) -> tuple[str, ...]:
        """Ids of all stored images, in alphabetical order; empty when nothing was stored yet.

        Raises:
            StoreError: the folder cannot be read.
        """
        try:
            images = {path.stem for path in self._images.iterdir() if path.suffix == ".png"}
            records = {path.stem for path in self._records.iterdir() if path.suffix == ".json"}
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(
                f"The image store {self.root} cannot be read ({error.strerror}); {_elsewhere()}."
            ) from error
        return tuple(sorted(each for each in images & records if re.fullmatch(IMAGE_ID_PATTERN, each)))

    def has(self, image_id: str) -> bool:
        """Whether an image of this id is stored; false also for a malformed id or an unreadable folder."""
        if re.fullmatch(IMAGE_ID_PATTERN, image_id) is None:
            return False
        try:
            return all(path.is_file() for path in self._paths(image_id))
        except OSError:
            return False

    def recognise(self, picture: Picture) -> StoredImage | None:
        """The stored image that a picture (H, W, 3) of at least 28 px shows, be it enlarged, marked, scaled
        or re-encoded; None when it shows none, or when the store cannot be read.

        The first call reads every stored image, about a thousand a second; later ones only what is new.
        """
        image_id = image_id_of(picture)
        same = self._readable(image_id) if self.has(image_id) else None
        if same is not None:
            return same
        try:
            ids = self.ids()
        except StoreError:
            return None
        seen = appearance(picture)
        found: list[tuple[float, StoredImage]] = []
        for each in self._likenesses.candidates(picture, ids, self._pixels_of):
            stored = self._readable(each)
            apart = None if stored is None else difference(seen, appearance(stored.pixels()))
            if stored is not None and apart is not None:
                found.append((apart, stored))
        return min(found, key=lambda each: each[0])[1] if found else None

    def _readable(self, image_id: str) -> StoredImage | None:
        try:
            return self.get(image_id)
        except StoreError:
            return None

    def _pixels_of(self, image_id: str) -> Picture | None:
        try:
            return read_image(self._paths(image_id)[0])
        except ImageError:
            return None

    def check_writable(self) -> None:
        """Write and remove an empty file. Raises StoreError when the store cannot be written."""
        with self._lock, self._writing():
            self._prepare()
            probe = self._images / f".{os.getpid()}{_PARTIAL}"
            try:
                probe.touch()
            finally:
                with suppress(OSError):
                    probe.unlink(missing_ok=True)

    def _paths(self, image_id: str) -> tuple[Path, Path]:
        return self._images / f"{image_id}.png", self._records / f"{image_id}.json"

    def _prepare(self) -> None:
        """Make the folders and, once per object, remove what a killed process left behind."""
        for folder in (self._images, self._records):
            folder.mkdir(parents=True, exist_ok=True)
            if not self._is_swept:
                sweep(folder)
        self._is_swept = True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn an OSError into a StoreError that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise StoreError(
                    f"The disk of the image store {self.root} is full; free some space, or {_elsewhere()}."
                ) from error
            reason = error.strerror or str(error)
            raise StoreError(
                f"The image store {self.root} cannot be written ({reason}); {_elsewhere()}."
            ) from error


def _elsewhere() -> str:
    return f"set {HOME_VARIABLE} to a folder that can be written"


def _damaged(image_id: str) -> str:
    return f"The stored image {image_id} is damaged; repeat the request that made it."


def _restore(path: Path, before: bytes | None) -> None:
    """Make a file what it was; None says that there was none."""
    if before is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != before:
        _write_whole(path, before)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        StoreError: the disk is full, or the file or its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, content)
    except OSError as error:
        reason = "the disk is full" if error.errno in _DISK_FULL else error.strerror or str(error)
        raise StoreError(f"{path} cannot be written ({reason}); choose another folder.") from error


def _write_whole(path: Path, content: bytes) -> None:
    """Temporary file in the same folder, fsync, rename; the temporary file is gone afterwards in any case."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove temporary files of `write_atomically` older than an hour: whoever wrote them was killed."""
    oldest = time.time() - _STALE_SECONDS
    for path in folder.glob(f".*{_PARTIAL}"):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
