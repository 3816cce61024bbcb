"""Rendering of tiles for an answer."""

import numpy as np
import pytest

from pathsynth.images import read_image, read_image_and_xmp, upscale
from pathsynth.provenance import claimed_tiles
from pathsynth.records import TileRecord
from tests.fakes import noisy_tile, smooth_tile
from tests.pathsynth.test_provenance import record
from tools.pictures import PICTURE_BYTES, show


def records(count: int) -> list[TileRecord]:
    """Records with the longest descriptions that can be asked for, in characters that take most bytes."""
    return [record("\U0001f52c" * 999 + str(seed), seed) for seed in range(count)]


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("edge", [28, 224])
def test_pictures_of_any_number_of_the_worst_tiles_stay_within_the_limit(count: int, edge: int) -> None:
    tiles = [noisy_tile(seed, edge) for seed in range(count)]
    pictures = show(tiles, [str(seed) for seed in range(count)], records(count))

    assert sum(map(len, pictures.files)) <= PICTURE_BYTES
    assert all(min(read_image(file).shape[:2]) >= 224 for file in pictures.files)


def test_a_tile_of_full_size_is_shown_as_it_is_but_for_the_mark() -> None:
    tile = smooth_tile(1, 224)

    pictures = show([tile], ["1"], records(1))

    assert not pictures.enlarged
    shown = read_image(pictures.files[0])
    assert (shown[:196] == tile[:196]).all()
    assert (shown[196:] != tile[196:]).any()


def test_a_native_tile_is_shown_enlarged() -> None:
    pictures = show([smooth_tile(1)], ["1"], records(1))

    assert pictures.enlarged
    assert not pictures.sheet
    assert read_image(pictures.files[0]).shape == (224, 224, 3)


def test_the_same_tiles_give_the_same_bytes() -> None:
    tiles, captions = [noisy_tile(seed) for seed in range(9)], [f"tile {seed}" for seed in range(9)]

    assert show(tiles, captions, records(9)) == show(tiles, captions, records(9))


def test_nine_detailed_tiles_keep_their_size_on_one_sheet() -> None:
    random = np.random.default_rng(0)
    grain = random.normal(0, 8, (9, 224, 224, 3))
    tiles = [(smooth_tile(i, 224) + grain[i]).clip(0, 255).astype(np.uint8) for i in range(9)]

    pictures = show(tiles, [""] * 9, records(9))

    assert (pictures.sheet, pictures.enlarged, pictures.media_type) == (True, False, "image/jpeg")
    (file,) = pictures.files
    assert len(file) <= PICTURE_BYTES
    sheet, claims = read_image_and_xmp(file)
    assert sheet.shape[1] > 3 * 224
    assert len(claimed_tiles(claims)) == 9


@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_picture_carries_the_provenance_of_the_tiles_it_shows(count: int) -> None:
    made = records(count)
    pictures = show([noisy_tile(seed) for seed in range(count)], [""] * count, made)

    claims = [claim for file in pictures.files for claim in claimed_tiles(read_image_and_xmp(file)[1])]
    assert [claim.image_id for claim in claims] == [each.image_id for each in made]


@pytest.mark.parametrize("count", [1, 9])
def test_the_environment_of_the_server_turns_the_mark_off(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    tiles, captions = [noisy_tile(seed) for seed in range(count)], [""] * count
    with_mark = show(tiles, captions, records(count))
    monkeypatch.setenv("PATHSYNTH_VISIBLE_MARK", "off")
    without = show(tiles, captions, records(count))

    marked, plain = read_image(with_mark.files[0]), read_image(without.files[0])
    assert marked.shape != plain.shape or (marked != plain).any()
    if count == 1:
        assert np.array_equal(plain, upscale(tiles[0], 224))
