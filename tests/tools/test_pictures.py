"""Rendering of tiles for an answer."""

import pytest

from pathsynth.images import read_image
from tests.fakes import noisy_tile, smooth_tile
from tools.pictures import PICTURE_BYTES, show


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("edge", [28, 224])
def test_pictures_of_any_number_of_the_worst_tiles_stay_within_the_limit(count: int, edge: int) -> None:
    pictures = show([noisy_tile(seed, edge) for seed in range(count)], [str(seed) for seed in range(count)])

    assert sum(map(len, pictures.files)) <= PICTURE_BYTES
    assert all(min(read_image(file).shape[:2]) >= 224 for file in pictures.files)


def test_a_tile_of_full_size_is_shown_as_it_is() -> None:
    tile = smooth_tile(1, 224)

    pictures = show([tile], ["1"])

    assert not pictures.enlarged
    assert (read_image(pictures.files[0]) == tile).all()


def test_a_native_tile_is_shown_enlarged() -> None:
    pictures = show([smooth_tile(1)], ["1"])

    assert pictures.enlarged
    assert not pictures.sheet
    assert read_image(pictures.files[0]).shape == (224, 224, 3)


def test_the_same_tiles_give_the_same_bytes() -> None:
    tiles, captions = [noisy_tile(seed) for seed in range(9)], [f"tile {seed}" for seed in range(9)]

    assert show(tiles, captions) == show(tiles, captions)
