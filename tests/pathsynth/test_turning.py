"""Turning tiles: pixels stay, words for the direction stay, and no way is preferred."""

import numpy as np
import numpy.typing as npt
import pytest

from pathsynth.attributes import ORIENTATIONS, measure, phrases
from pathsynth.turning import symmetries, turned

SEEDS = range(60)


def lines(degrees: float) -> npt.NDArray[np.uint8]:
    """A tile (28, 28, 3) of lines at an angle, counter-clockwise from horizontal, brighter to one corner."""
    y, x = np.mgrid[0:28, 0:28]
    angle = np.radians(degrees)
    wave = np.cos(0.9 * (x * np.sin(angle) + y * np.cos(angle)))
    grey = 120 + 60 * wave + 0.8 * x + 0.3 * y
    return np.repeat(grey[..., np.newaxis], 3, axis=2).round().astype(np.uint8)


def speckled() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (28, 28, 3), dtype=np.uint8)


def test_symmetries_move_pixels_and_change_none() -> None:
    tile = speckled()
    every = symmetries(tile)
    assert np.array_equal(every[0], tile)
    assert len({each.tobytes() for each in every}) == 8
    colours = np.sort(tile.reshape(-1, 3), axis=0)
    assert all(np.array_equal(np.sort(each.reshape(-1, 3), axis=0), colours) for each in every)


@pytest.mark.parametrize("way", range(4))
def test_a_tile_keeps_the_words_for_its_direction(way: int) -> None:
    tile = lines(45 * way + 8)
    assert phrases(tile[np.newaxis])[0][-1].endswith(f" {ORIENTATIONS[way]}")
    results = np.stack([turned(tile, seed) for seed in SEEDS])
    assert {words[-1] for words in phrases(results)} == {phrases(tile[np.newaxis])[0][-1]}
    assert len({each.tobytes() for each in results}) == 4
    off = (measure(results)["orientation"] - 45 * way + 90) % 180 - 90
    assert (off > 2).any()
    assert (off < -2).any()


def test_a_tile_without_direction_may_be_turned_in_every_way() -> None:
    tile = speckled()
    assert phrases(tile[np.newaxis])[0][-1] == "no direction"
    assert len({turned(tile, seed).tobytes() for seed in SEEDS}) == 8
