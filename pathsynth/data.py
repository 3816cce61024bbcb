"""PathMNIST, read from the files of `medmnist` with their official split.

Train and val come from the same patients (NCT-CRC-HE-100K), test from other patients of another centre
(CRC-VAL-HE-7K); see Yang et al., *MedMNIST v2*, Scientific Data 2023, and Kather et al., 2018. CC BY 4.0.
"""

import errno
import hashlib
import http.client
import os
import shutil
import ssl
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from pathsynth.errors import DataError

SplitName = Literal["train", "val", "test"]
TileSize = Literal[28, 64, 128, 224]
Progress = Callable[[int, int], None]

ROOT_VARIABLE = "PATHSYNTH_DATA"
COUNTS: dict[SplitName, int] = {"train": 89_996, "val": 10_004, "test": 7_180}
_MEMORY_MAPPED_FROM = 64
_CLASSES = 9
_BLOCK = 1 << 20
_TIMEOUT = 60.0
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@dataclass(frozen=True)
class Split:
    """One split of PathMNIST: `images` uint8 (N, size, size, 3) RGB, `labels` int64 (N,)."""

    name: SplitName
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the bytes of the images followed by those of the labels (int64)."""
        digest = hashlib.sha256()
        for start in range(0, len(self.images), 4096):
            digest.update(np.ascontiguousarray(self.images[start : start + 4096]).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def default_root() -> Path:
    """The folder that holds the archives: `PATHSYNTH_DATA`, else medmnist's own default."""
    from_environment = os.environ.get(ROOT_VARIABLE)
    if from_environment:
        return Path(from_environment).expanduser()
    return Path.home() / ".medmnist"


def archive_path(size: int = 28, root: Path | None = None) -> Path:
    """Path of the PathMNIST archive for tiles of `size` px, as medmnist names it."""
    if size not in get_args(TileSize):
        raise DataError(f"PathMNIST has no tiles of {size} px; choose one of 28, 64, 128 or 224.")
    return (root or default_root()) / ("pathmnist.npz" if size == 28 else f"pathmnist_{size}.npz")


def available(size: int = 28, root: Path | None = None) -> bool:
    """Whether the archive for tiles of `size` px is in place."""
    return archive_path(size, root).is_file()


def load_split(name: SplitName, size: int = 28, root: Path | None = None) -> Split:
    """Read one split. Tiles of 64 px and more are memory-mapped from arrays unpacked beside the archive.

    Raises:
        DataError: the archive is missing, truncated, or holds something other than PathMNIST; or there is no
        room
            to unpack it.
    """
    if name not in COUNTS:
        raise DataError(f"PathMNIST has no split named {name!r}; choose train, val or test.")
    path = archive_path(size, root)
    if not path.is_file():
        raise DataError(
            f"PathMNIST at {size} px was not found at {path}; run `pathsynth data fetch --size {size}` "
            f"or set {ROOT_VARIABLE} to the folder that holds {path.name}."
        )
    damaged = f"{path} is damaged or incomplete; delete it and run `pathsynth data fetch --size {size}`."
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(damaged)
        if size < _MEMORY_MAPPED_FROM:
            with np.load(path, allow_pickle=False) as archive:
                images, labels = archive[f"{name}_images"], archive[f"{name}_labels"]
        else:
            images = np.load(_unpacked(path, f"{name}_images"), mmap_mode="r", allow_pickle=False)
            labels = np.load(_unpacked(path, f"{name}_labels"), allow_pickle=False)
    except KeyError as error:
        raise DataError(
            f"{path} holds no PathMNIST {name} split ({error.args[0]}); fetch it again."
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(damaged) from error
    except OSError as error:
        if error.errno in _DISK_FULL | _CANNOT_WRITE:
            raise DataError(_unusable(path.parent, error)) from error
        raise DataError(damaged) from error
    expected = (COUNTS[name], size, size, 3)
    if images.shape != expected or images.dtype != np.uint8 or labels.size != COUNTS[name]:
        raise DataError(
            f"{path} is not PathMNIST at {size} px: the {name} images are {images.dtype} {images.shape}, "
            f"expected uint8 {expected}; fetch it again."
        )
    labels = labels.reshape(-1)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= _CLASSES:
        raise DataError(f"{path} is not PathMNIST: a {name} label is not one of 0 to 8; fetch it again.")
    return Split(name, images, labels.astype(np.int64))


def _unpacked(archive: Path, member: str) -> Path:
    """Path of one array of the archive, unpacked when absent, so that it can be memory-mapped."""
    target = archive.with_suffix("") / f"{member}.npy"
    with zipfile.ZipFile(archive) as packed:
        info = packed.getinfo(f"{member}.npy")
        if target.is_file() and target.stat().st_size == info.file_size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        try:
            with packed.open(info) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 22)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def fetch(size: int = 28, root: Path | None = None, progress: Progress | None = None) -> Path:
    """Fetch the PathMNIST archive of tiles of `size` px from where medmnist says; check medmnist's MD5.

    An archive already in place and whole is left alone; another one is replaced only by a whole one. A
    download that was cut short goes on where it stopped. `progress` hears of (bytes done, bytes in all).
    Returns the archive's path.

    Raises:
        DataError: PathMNIST has no such size, there is no network, the download is not what medmnist expects,
        or the
            folder cannot be written.
    """
    from medmnist.info import INFO

    path = archive_path(size, root)
    suffix = "" if size == 28 else f"_{size}"
    url, md5 = str(INFO["pathmnist"][f"url{suffix}"]), str(INFO["pathmnist"][f"MD5{suffix}"])
    partial = path.with_name(f"{path.name}.partial")
    try:
        if path.is_file() and _md5(path) == md5:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial, progress or (lambda done, total: None))
        if _md5(partial) != md5:
            partial.unlink()
            raise DataError(
                f"What {_host(url)} sent is not PathMNIST at {size} px (wrong MD5); try again later."
            )
        os.replace(partial, path)
    except (
        urllib.error.URLError,
        ssl.SSLError,
        TimeoutError,
        ConnectionError,
        http.client.HTTPException,
    ) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"PathMNIST could not be fetched from {_host(url)} ({reason}); check the network and try again, "
            f"or download {url} elsewhere and put it at {path}."
        ) from error
    except OSError as error:
        raise DataError(_unusable(path.parent, error)) from error
    return path


def _download(url: str, partial: Path, progress: Progress) -> None:
    """Append to `partial` what it lacks of the file at `url`; start over when the server cannot go on."""
    present = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={present}-"} if present else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is lacking
        raise
    with response:
        goes_on = response.status == http.client.PARTIAL_CONTENT
        done = present if goes_on else 0
        total = done + int(response.headers.get("Content-Length") or 0)
        with partial.open("ab" if goes_on else "wb") as sink:
            progress(done, total)
            while block := response.read(_BLOCK):
                sink.write(block)
                done += len(block)
                progress(done, max(done, total))
    if done < total:
        raise ConnectionError("the connection was cut")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _unusable(folder: Path, error: OSError) -> str:
    if error.errno in _DISK_FULL:
        return f"The disk of {folder} is full; free some space or set {ROOT_VARIABLE} to another folder."
    return (
        f"{folder} cannot be used ({error.strerror or error}); "
        f"set {ROOT_VARIABLE} to a folder that can be read and written."
    )
