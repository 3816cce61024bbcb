"""Reading PathMNIST, and every way in which its file can be wrong."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from pathsynth import data
from pathsynth.data import available, default_root, fetch, load_split
from pathsynth.errors import DataError

Array = npt.NDArray[Any]

SMALL: dict[data.SplitName, int] = {"train": 30, "val": 20, "test": 10}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PathMNIST of 60 tiles, so that fakes are written in no time."""
    monkeypatch.setattr(data, "COUNTS", SMALL)


def arrays(size: int = 28) -> dict[str, Array]:
    random = np.random.default_rng(size)
    made: dict[str, Array] = {}
    for name, count in SMALL.items():
        made[f"{name}_images"] = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        made[f"{name}_labels"] = (np.arange(count, dtype=np.uint8) % 9)[:, None]
    return made


def write(root: Path, size: int = 28, **changed: Array) -> Path:
    path = root / ("pathmnist.npz" if size == 28 else f"pathmnist_{size}.npz")
    np.savez_compressed(path, allow_pickle=True, **(arrays(size) | changed))
    return path


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_split_is_read(tmp_path: Path, size: int, name: data.SplitName) -> None:
    write(tmp_path, size)
    split = load_split(name, size, tmp_path)
    assert len(split) == SMALL[name]
    assert np.array_equal(split.images, arrays(size)[f"{name}_images"])
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == [i % 9 for i in range(SMALL[name])]


@pytest.mark.usefixtures("few")
def test_large_tiles_are_memory_mapped_and_unpacked_once(tmp_path: Path) -> None:
    write(tmp_path, 64)
    assert isinstance(load_split("val", 64, tmp_path).images, np.memmap)
    unpacked = tmp_path / "pathmnist_64" / "val_images.npy"
    before = unpacked.stat().st_mtime_ns
    load_split("val", 64, tmp_path)
    assert unpacked.stat().st_mtime_ns == before


@pytest.mark.usefixtures("few")
def test_the_hash_names_the_arrays_and_not_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    first = load_split("val", 28, tmp_path).sha256
    np.savez(tmp_path / "pathmnist.npz", allow_pickle=True, **arrays())
    assert load_split("val", 28, tmp_path).sha256 == first != load_split("test", 28, tmp_path).sha256


@pytest.mark.parametrize("size", [28, 224])
def test_a_missing_archive_is_answered_with_what_to_do(tmp_path: Path, size: int) -> None:
    assert not available(size, tmp_path)
    with pytest.raises(DataError, match=rf"pathsynth data fetch --size {size}.*PATHSYNTH_DATA"):
        load_split("val", size, tmp_path)


def test_a_folder_in_place_of_the_archive_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "pathmnist.npz").mkdir()
    with pytest.raises(DataError, match="was not found"):
        load_split("val", 28, tmp_path)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_archive_is_said_to_be_damaged(tmp_path: Path, size: int, share: float) -> None:
    path = write(tmp_path, size)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="damaged or incomplete; delete it"):
        load_split("val", size, tmp_path)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("size", [28, 64])
def test_a_flipped_byte_in_the_pixels_is_noticed(tmp_path: Path, size: int) -> None:
    path = write(tmp_path, size)
    content = bytearray(path.read_bytes())
    content[content.index(b"val_images.npy") + 5000] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or incomplete"):
        load_split("val", size, tmp_path)


def test_a_file_that_is_no_archive_is_said_to_be_damaged(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(9))
    shutil.move(tmp_path / "array.npy", tmp_path / "pathmnist.npz")
    with pytest.raises(DataError, match="damaged or incomplete"):
        load_split("val", 28, tmp_path)


@pytest.mark.usefixtures("few")
def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pathmnist.npz", other=np.zeros(3))
    with pytest.raises(DataError, match="holds no PathMNIST val split"):
        load_split("val", 28, tmp_path)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((20, 28, 28), np.uint8),
        np.zeros((20, 32, 32, 3), np.uint8),
        np.zeros((19, 28, 28, 3), np.uint8),
        np.zeros((20, 28, 28, 3), np.float32),
    ],
    ids=["grey", "other edge", "one too few", "floating point"],
)
def test_images_of_the_wrong_shape_are_refused_with_what_was_found(tmp_path: Path, images: Array) -> None:
    write(tmp_path, val_images=images)
    with pytest.raises(DataError, match="is not PathMNIST at 28 px") as caught:
        load_split("val", 28, tmp_path)
    assert str(images.shape) in str(caught.value)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "labels",
    [np.full(20, 9, np.uint8), np.full(20, -1), np.zeros(20), np.zeros(19, np.uint8), np.array([None] * 20)],
    ids=["class 9", "negative", "floating point", "one too few", "objects"],
)
def test_wrong_labels_are_refused(tmp_path: Path, labels: Array) -> None:
    write(tmp_path, val_labels=labels)
    with pytest.raises(DataError):
        load_split("val", 28, tmp_path)


def test_a_size_or_a_split_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    unknown: Any = "holdout"
    with pytest.raises(DataError, match="28, 64, 128 or 224"):
        load_split("val", 32, tmp_path)
    with pytest.raises(DataError, match="train, val or test"):
        load_split(unknown, 28, tmp_path)


@pytest.mark.usefixtures("few")
def test_a_full_disk_while_unpacking_is_named_and_leaves_no_half_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 64)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(DataError, match="is full; free some space"):
            load_split("val", 64, tmp_path)
    assert list((tmp_path / "pathmnist_64").iterdir()) == []
    assert len(load_split("val", 64, tmp_path)) == SMALL["val"]


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATHSYNTH_DATA", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("PATHSYNTH_DATA")
    assert default_root().name == ".medmnist"


CONTENT = bytes(range(256)) * 20_000


class Archive(BaseHTTPRequestHandler):
    """Serves CONTENT, from an offset when asked to; can cut the connection early, or send something else."""

    cut_after: int | None = None
    other: bytes | None = None
    status: int | None = None
    offsets: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        if self.status is not None:
            self.send_error(self.status)
            return
        content = self.other or CONTENT
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.offsets.append(start)
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(
            content[start:] if self.cut_after is None else content[start : start + self.cut_after]
        )

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Archive]]:
    """A server in place of the one medmnist names."""
    from medmnist.info import INFO

    handler = type("Handler", (Archive,), {"offsets": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for suffix in ("", "_64"):
            monkeypatch.setitem(INFO["pathmnist"], f"url{suffix}", f"http://127.0.0.1:{server.server_port}/a")
            monkeypatch.setitem(INFO["pathmnist"], f"MD5{suffix}", hashlib.md5(CONTENT).hexdigest())
        try:
            yield handler
        finally:
            server.shutdown()
            thread.join()


def test_fetching_writes_the_archive_and_tells_how_far_it_is(archive: type[Archive], tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    path = fetch(64, tmp_path / "new", lambda done, total: heard.append((done, total)))
    assert path == tmp_path / "new" / "pathmnist_64.npz"
    assert path.read_bytes() == CONTENT
    assert heard[0] == (0, len(CONTENT))
    assert heard[-1] == (len(CONTENT), len(CONTENT))
    assert heard == sorted(heard)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_is_there_and_whole_is_not_fetched_again(archive: type[Archive], tmp_path: Path) -> None:
    fetch(28, tmp_path)
    fetch(28, tmp_path)
    assert archive.offsets == [0]


def test_a_damaged_archive_is_replaced(archive: type[Archive], tmp_path: Path) -> None:
    (tmp_path / "pathmnist.npz").write_bytes(b"damaged")
    assert fetch(28, tmp_path).read_bytes() == CONTENT


def test_a_download_that_was_cut_goes_on_where_it_stopped(archive: type[Archive], tmp_path: Path) -> None:
    archive.cut_after = 3_000_000
    with pytest.raises(DataError, match="could not be fetched from 127"):
        fetch(28, tmp_path)
    assert not (tmp_path / "pathmnist.npz").exists()
    archive.cut_after = None
    assert fetch(28, tmp_path).read_bytes() == CONTENT
    assert archive.offsets == [0, 3_000_000]


def test_a_download_that_only_lacked_its_check_is_taken(archive: type[Archive], tmp_path: Path) -> None:
    (tmp_path / "pathmnist.npz.partial").write_bytes(CONTENT)
    assert fetch(28, tmp_path).read_bytes() == CONTENT


def test_something_else_than_pathmnist_is_thrown_away(archive: type[Archive], tmp_path: Path) -> None:
    archive.other = b"<html>maintenance</html>"
    with pytest.raises(DataError, match="wrong MD5"):
        fetch(28, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_refuses_is_named_and_an_older_archive_stays(
    archive: type[Archive], tmp_path: Path
) -> None:
    (tmp_path / "pathmnist.npz").write_bytes(b"older")
    archive.status = 503
    with pytest.raises(DataError, match="check the network"):
        fetch(28, tmp_path)
    assert (tmp_path / "pathmnist.npz").read_bytes() == b"older"


def test_no_network_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmnist.info import INFO

    monkeypatch.setitem(INFO["pathmnist"], "url", "http://127.0.0.1:9/pathmnist.npz")
    with pytest.raises(DataError, match=r"could not be fetched from 127.*check the network") as caught:
        fetch(28, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_root_that_cannot_be_written_is_named(archive: type[Archive], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="set PATHSYNTH_DATA"):
        fetch(28, tmp_path / "file" / "root")


def test_there_is_no_pathmnist_of_another_size_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="28, 64, 128 or 224"):
        fetch(32, tmp_path)


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_the_real_pathmnist_has_the_published_counts_and_classes(name: data.SplitName) -> None:
    if not os.environ.get("PATHSYNTH_DATA") or not available(28):
        pytest.skip("NOT TESTED on real data: set PATHSYNTH_DATA to the folder that holds pathmnist.npz")
    split = load_split(name)
    published = {
        "train": [9366, 9509, 10360, 10401, 8006, 12182, 7886, 9401, 12885],
        "val": [1041, 1057, 1152, 1156, 890, 1354, 877, 1045, 1432],
        "test": [1338, 847, 339, 634, 1035, 592, 741, 421, 1233],
    }
    assert np.bincount(split.labels).tolist() == published[name]
    assert split.images.shape == (sum(published[name]), 28, 28, 3)
