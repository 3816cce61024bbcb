"""The image store: whole at every moment, whatever happens to disk and process."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pathsynth.errors import StoreError
from pathsynth.images import encode_png, read_image_and_xmp
from pathsynth.provenance import claimed_tiles
from pathsynth.records import TileRecord
from pathsynth.store import ImageStore, home, image_id_of, write_atomically

ROOT_OF_SOURCES = Path(__file__).parents[2]


def tile(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)


def record(image_id: str, seed: int = 0) -> TileRecord:
    return TileRecord(
        image_id=image_id,
        tissue="TUM",
        label="a label",
        description="a description",
        confidence=0.9,
        probabilities={"TUM": 0.9, "STR": 0.1},
        verified=True,
        attempts=1,
        seed=seed,
        size=28,
        model="0123456789ab",
    )


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "home")


def test_making_the_object_touches_no_disk(tmp_path: Path) -> None:
    ImageStore(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_what_is_put_comes_back_from_another_object(store: ImageStore) -> None:
    put = store.put(tile(1), record)
    got = ImageStore(store.root).get(put.record.image_id)
    assert got.record == put.record
    assert got.path == put.path
    assert np.array_equal(got.pixels(), tile(1))


def test_pixels_are_a_copy(store: ImageStore) -> None:
    stored = store.put(tile(1), record)
    stored.pixels()[:] = 0
    assert np.array_equal(stored.pixels(), tile(1))


def test_the_id_depends_on_pixels_and_shape_alone() -> None:
    assert image_id_of(tile(1)) == image_id_of(np.asfortranarray(tile(1))) != image_id_of(tile(2))
    assert image_id_of(np.zeros((2, 8, 3), np.uint8)) != image_id_of(np.zeros((8, 2, 3), np.uint8))


def test_ids_are_listed_in_order_and_an_unused_store_is_empty(store: ImageStore) -> None:
    assert store.ids() == ()
    ids = [store.put(tile(seed), record).record.image_id for seed in range(5)]
    assert store.ids() == tuple(sorted(ids))


def seed_in_png(path: Path) -> int:
    """The seed that the provenance in a PNG names."""
    (claim,) = claimed_tiles(read_image_and_xmp(path)[1])
    return claim.seed


def test_the_same_pixels_again_keep_the_latest_record_in_both_files(store: ImageStore) -> None:
    first = store.put(tile(1), partial(record, seed=1))
    second = store.put(tile(1), partial(record, seed=2))
    assert store.ids() == (first.record.image_id,)
    assert store.get(first.record.image_id).record == second.record
    assert seed_in_png(second.path) == 2


def test_the_same_tile_again_leaves_the_png_alone(store: ImageStore) -> None:
    first = store.put(tile(1), record)
    untouched = first.path.stat().st_mtime_ns
    store.put(tile(1), lambda image_id: record(image_id).model_copy(update={"attempts": 9}))
    assert store.get(first.record.image_id).record.attempts == 9
    assert first.path.stat().st_mtime_ns == untouched


def test_an_image_stored_without_provenance_gets_it_when_it_is_made_again(store: ImageStore) -> None:
    stored = store.put(tile(1), record)
    stored.path.write_bytes(encode_png(tile(1)))
    assert store.get(stored.record.image_id).record == stored.record
    store.put(tile(1), record)
    assert seed_in_png(stored.path) == 0


def test_a_record_of_another_image_is_a_mistake(store: ImageStore) -> None:
    with pytest.raises(ValueError, match="the record names"):
        store.put(tile(1), lambda _: record("0" * 16))
    assert store.ids() == ()


def test_a_store_knows_what_it_has_without_reading_it(store: ImageStore, tmp_path: Path) -> None:
    image_id = store.put(tile(1), record).record.image_id
    assert store.has(image_id)
    assert not store.has("0" * 16)
    assert not store.has(f"../images/{image_id}")
    (tmp_path / "file").touch()
    assert not ImageStore(tmp_path / "file").has(image_id)


@pytest.mark.parametrize(
    "wrong", ["", "xyz", "../../etc/passwd", "ABCDEF0123456789", "0" * 15, "0" * 17, "0" * 9999]
)
def test_a_malformed_id_is_refused_shortly(store: ImageStore, wrong: str) -> None:
    with pytest.raises(StoreError, match="not an image id") as caught:
        store.get(wrong)
    assert len(str(caught.value)) < 200


def test_an_unknown_id_is_said_to_be_unknown(store: ImageStore) -> None:
    with pytest.raises(StoreError, match="There is no stored image"):
        store.get("0" * 16)


def test_exchanged_pixels_are_noticed(store: ImageStore) -> None:
    stored = store.put(tile(1), record)
    stored.path.write_bytes(encode_png(tile(2)))
    with pytest.raises(StoreError, match="damaged"):
        store.get(stored.record.image_id)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"[1"])
def test_a_damaged_record_is_noticed(store: ImageStore, damage: bytes) -> None:
    stored = store.put(tile(1), record)
    (store.root / "records" / f"{stored.record.image_id}.json").write_bytes(damage)
    with pytest.raises(StoreError, match="damaged"):
        store.get(stored.record.image_id)


def test_a_truncated_png_is_noticed_and_made_whole_by_the_next_put(store: ImageStore) -> None:
    stored = store.put(tile(1), record)
    stored.path.write_bytes(stored.path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="damaged"):
        store.get(stored.record.image_id)
    store.put(tile(1), record)
    assert np.array_equal(store.get(stored.record.image_id).pixels(), tile(1))


def test_half_of_an_image_is_not_listed(store: ImageStore) -> None:
    kept, without_png, without_record = (store.put(tile(seed), record) for seed in range(3))
    without_png.path.unlink()
    (store.root / "records" / f"{without_record.record.image_id}.json").unlink()
    assert store.ids() == (kept.record.image_id,)
    for half in (without_png, without_record):
        with pytest.raises(StoreError, match="There is no stored image"):
            store.get(half.record.image_id)


def test_the_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATHSYNTH_HOME", str(tmp_path / "elsewhere"))
    assert home() == ImageStore().root == tmp_path / "elsewhere"
    monkeypatch.delenv("PATHSYNTH_HOME")
    assert home().name == "pathsynth"


@pytest.fixture(params=["below a file", "below /proc", "without permission"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A home that cannot be written; the permission bits of the last kind do not bind the superuser."""
    if request.param == "below a file":
        (tmp_path / "file").touch()
        yield tmp_path / "file" / "home"
    elif request.param == "below /proc":
        if not Path("/proc/self").is_dir():
            pytest.skip("this system has no /proc")
        yield Path("/proc/pathsynth")
    else:
        if os.name != "posix" or os.geteuid() == 0:
            pytest.skip("permission bits do not bind the superuser")
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        yield folder
        folder.chmod(0o700)


def test_a_home_that_cannot_be_written_is_said_in_one_sentence(unwritable: Path) -> None:
    store = ImageStore(unwritable)
    with pytest.raises(StoreError, match="PATHSYNTH_HOME") as caught:
        store.put(tile(1), record)
    assert str(unwritable) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="PATHSYNTH_HOME"):
        store.check_writable()


def test_a_writable_home_passes_the_check_and_stays_empty(store: ImageStore) -> None:
    store.check_writable()
    assert files_below(store.root) == []


def failing(real: Callable[[int], None], at: int, code: int) -> Callable[[int], None]:
    """`os.fsync` that fails at its call number `at`, as a full disk does on delayed allocation."""
    calls = iter(range(1, 1000))

    def fsync(descriptor: int) -> None:
        if next(calls) == at:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    return fsync


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_write_that_fails_leaves_nothing_of_the_tile_and_all_of_the_others(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, at: int, code: int
) -> None:
    kept = store.put(tile(1), record)
    before = files_below(store.root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync, at, code))
        with pytest.raises(StoreError, match="cannot be written" if code == errno.EIO else "is full"):
            store.put(tile(2), record)
    assert files_below(store.root) == before
    assert np.array_equal(store.get(kept.record.image_id).pixels(), tile(1))
    store.put(tile(2), record)
    assert len(store.ids()) == 2


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_failed_update_keeps_the_older_record_in_both_files(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    old = store.put(tile(1), partial(record, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync, at, errno.ENOSPC))
        with pytest.raises(StoreError):
            store.put(tile(1), partial(record, seed=2))
    assert store.get(old.record.image_id).record == old.record
    assert seed_in_png(old.path) == 1


def test_an_interrupt_in_the_middle_leaves_no_half_image(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target).suffix == ".json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put(tile(1), record)
    assert files_below(store.root) == []
    store.put(tile(1), record)
    assert len(store.ids()) == 1


PUT_MANY = """
    import sys
    from pathlib import Path
    from tests.pathsynth.test_store import record, tile
    from pathsynth.store import ImageStore
    store = ImageStore(Path(sys.argv[1]))
    for seed in range(100_000):
        store.put(tile(seed), record)
        print(seed, flush=True)
"""


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT_OF_SOURCES,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
def test_a_killed_process_leaves_only_whole_listed_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for _ in range(4):
        with run_python(PUT_MANY, str(tmp_path)) as process:
            assert process.stdout is not None
            for _ in range(5):
                process.stdout.readline()
            time.sleep(random.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
    store = ImageStore(tmp_path)
    assert len(store.ids()) > 4
    for image_id in store.ids():
        assert store.get(image_id).record.image_id == image_id


def test_a_file_that_outgrows_its_limit_is_reported_as_a_full_disk(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs file size limits")
    code = """
        import resource, sys
        from pathlib import Path
        from tests.pathsynth.test_store import files_below, record, tile
        from pathsynth.errors import StoreError
        from pathsynth.store import ImageStore
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        store = ImageStore(Path(sys.argv[1]))
        try:
            store.put(tile(1), record)
        except StoreError as error:
            print(error, files_below(store.root))
    """
    with run_python(code, str(tmp_path)) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "is full; free some space" in output
    assert output.strip().endswith("[]")


def test_leftovers_of_a_killed_process_are_removed_once_they_are_old(store: ImageStore) -> None:
    stored = store.put(tile(1), record)
    young, old = (stored.path.with_name(f".{name}.png.1.1.partial") for name in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    ImageStore(store.root).put(tile(2), record)
    assert young.exists()
    assert not old.exists()
    assert len(store.ids()) == 2


def test_the_record_is_json_with_the_public_keys(store: ImageStore) -> None:
    image_id = store.put(tile(1), record).record.image_id
    written = json.loads((store.root / "records" / f"{image_id}.json").read_text(encoding="utf-8"))
    assert written == record(image_id).model_dump(mode="json")
    assert written["synthetic"] is True


def test_a_copy_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out" / "tile.png"
    write_atomically(target, b"first")
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 1, errno.ENOSPC))
    with pytest.raises(StoreError, match="the disk is full"):
        write_atomically(target, b"second")
    assert target.read_bytes() == b"first"
    assert files_below(tmp_path) == ["out/tile.png"]
