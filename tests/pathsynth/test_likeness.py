"""Recognising a stored tile in a picture whose metadata is gone."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pathsynth.images import encode_png, read_image, upscale
from pathsynth.likeness import LikenessIndex, shows_tile
from pathsynth.mark import marked
from pathsynth.store import ImageStore
from tests.fakes import smooth_tile
from tests.pathsynth.test_provenance import record

Picture = npt.NDArray[np.uint8]


def plain_tile(seed: int) -> Picture:
    """A background: one colour and faint noise."""
    return np.random.default_rng(seed).integers(118, 123, (28, 28, 3)).astype(np.uint8)


def shown(tile: Picture) -> Picture:
    return marked(upscale(tile, 224))


def through(kind: str, quality: int) -> Callable[[Picture], Picture]:
    def convert(tile: Picture) -> Picture:
        file = io.BytesIO()
        Image.fromarray(shown(tile)).save(file, kind, quality=quality)
        return read_image(file.getvalue())

    return convert


def scaled(edge: int) -> Callable[[Picture], Picture]:
    def scale(tile: Picture) -> Picture:
        return np.array(Image.fromarray(shown(tile)).resize((edge, edge), Image.Resampling.BICUBIC))

    return scale


CONVERSIONS: dict[str, Callable[[Picture], Picture]] = {
    "as stored": lambda tile: tile,
    "as shown": shown,
    "without mark": lambda tile: upscale(tile, 224),
    "as shown on a sheet": lambda tile: marked(upscale(tile, 112)),
    "jpeg 95": through("JPEG", 95),
    "jpeg 75": through("JPEG", 75),
    "jpeg 50": through("JPEG", 50),
    "webp 80": through("WEBP", 80),
    "larger": scaled(512),
    "smaller": scaled(150),
    "with borders": lambda tile: np.pad(shown(tile), ((0, 0), (50, 50), (0, 0))),
}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "home")
    for seed in range(20):
        put(store, smooth_tile(seed))
    return store


def put(store: ImageStore, tile: Picture) -> str:
    made = store.put(tile, lambda image_id: record(image_id=image_id))
    return made.record.image_id


def recognised(store: ImageStore, picture: Picture) -> str | None:
    found = store.recognise(picture)
    return None if found is None else found.record.image_id


@pytest.mark.parametrize("conversion", CONVERSIONS.values(), ids=CONVERSIONS.keys())
def test_a_textured_tile_is_recognised_after(
    conversion: Callable[[Picture], Picture], store: ImageStore
) -> None:
    for seed in (0, 7, 19):
        assert recognised(store, conversion(smooth_tile(seed))) == put(store, smooth_tile(seed))


@pytest.mark.parametrize("conversion", CONVERSIONS.values(), ids=CONVERSIONS.keys())
def test_a_tile_that_is_not_stored_is_not_recognised(
    conversion: Callable[[Picture], Picture], store: ImageStore
) -> None:
    assert recognised(store, conversion(smooth_tile(100))) is None
    assert recognised(store, conversion(plain_tile(100))) is None


def test_a_plain_tile_is_recognised_only_while_it_is_nearly_unchanged(store: ImageStore) -> None:
    ids = [put(store, plain_tile(seed)) for seed in range(12)]
    for seed in (0, 11):
        assert recognised(store, shown(plain_tile(seed))) == ids[seed]
    assert recognised(store, through("JPEG", 30)(plain_tile(3))) is None
    assert recognised(store, shown(plain_tile(99))) is None


def test_a_tile_that_was_changed_is_another_one() -> None:
    tile = smooth_tile(1)
    assert shows_tile(shown(tile), tile)
    for other in (tile[::-1], tile[:, ::-1], np.rot90(tile), 255 - tile, np.roll(tile, 4, axis=0)):
        assert not shows_tile(shown(np.ascontiguousarray(other)), tile)


def test_tiles_stored_later_by_anyone_are_found_and_removed_ones_are_not(store: ImageStore) -> None:
    assert recognised(store, shown(smooth_tile(50))) is None
    later = put(ImageStore(store.root), smooth_tile(50))
    assert recognised(store, shown(smooth_tile(50))) == later
    store.get(later).path.unlink()
    assert recognised(store, shown(smooth_tile(50))) is None


def test_damaged_images_of_the_store_do_not_keep_the_others_from_being_found(store: ImageStore) -> None:
    damaged, exchanged, kept = store.ids()[:3]
    store.get(damaged).path.write_bytes(b"damaged")
    store.get(exchanged).path.write_bytes(encode_png(smooth_tile(60)))
    assert recognised(store, shown(smooth_tile(60))) is None
    assert recognised(store, shown(store.get(kept).pixels())) == kept


def test_a_store_that_is_empty_or_unreadable_recognises_nothing(tmp_path: Path) -> None:
    assert ImageStore(tmp_path / "none").recognise(shown(smooth_tile(1))) is None
    (tmp_path / "file").touch()
    assert ImageStore(tmp_path / "file").recognise(shown(smooth_tile(1))) is None


def test_each_tile_is_read_once() -> None:
    tiles = {str(seed): smooth_tile(seed) for seed in range(5)}
    read: list[str] = []

    def pixels_of(image_id: str) -> Picture:
        read.append(image_id)
        return tiles[image_id]

    index = LikenessIndex()
    for _ in range(2):
        assert index.candidates(shown(smooth_tile(3)), tiles, pixels_of)[0] == "3"
    assert sorted(read) == sorted(tiles)
