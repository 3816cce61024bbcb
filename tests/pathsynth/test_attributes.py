"""Measured attributes, on pictures whose attributes are known."""

import numpy as np
import numpy.typing as npt
import pytest

from pathsynth.attributes import (
    ATTRIBUTES,
    NUCLEAR_RED_BELOW,
    WHITE_ABOVE,
    Attribute,
    caption,
    measure,
    phrases,
)

Tiles = npt.NDArray[np.uint8]


def plain(red: int, green: int, blue: int) -> Tiles:
    return np.full((1, 28, 28, 3), (red, green, blue), dtype=np.uint8)


def lines(angle: float) -> Tiles:
    """Parallel lines at `angle` degrees, 0 horizontal, counter-clockwise as seen."""
    rows, columns = np.mgrid[:28, :28]
    upright = -rows
    across = columns * np.sin(np.radians(angle)) - upright * np.cos(np.radians(angle))
    grey = 128 + 60 * np.sin(across * 2 * np.pi / 7)
    return np.repeat(grey[None, ..., None], 3, axis=3).astype(np.uint8)


def test_brightness_and_redness_are_those_of_the_colour() -> None:
    values = measure(np.concatenate([plain(255, 255, 255), plain(0, 0, 0), plain(204, 102, 51)]))
    assert values["brightness"].tolist() == pytest.approx([1, 0, 119 / 255])
    assert values["redness"].tolist() == pytest.approx([0, 0, 153 / 255])
    assert values["contrast"].tolist() == pytest.approx([0, 0, 0])


def test_shares_of_white_and_nuclear_pixels_are_counted() -> None:
    tile = plain(200, 100, 180)
    tile[0, :7] = 255
    tile[0, 7:21, :14] = (80, 60, 140)
    values = measure(tile)
    assert values["white_space"][0] == pytest.approx(1 / 4)
    assert values["nuclear_density"][0] == pytest.approx(1 / 4)


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 135, 170])
def test_the_direction_of_lines_is_measured_as_it_is_seen(angle: float) -> None:
    values = measure(lines(angle))
    assert values["direction"][0] > 0.9
    difference = abs(values["orientation"][0] - angle)
    assert min(difference, 180 - difference) < 5


def test_noise_has_no_direction_and_more_grain_than_a_slope() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)
    slope = np.repeat(np.linspace(0, 255, 28, dtype=np.uint8)[None, None, :, None], 28, axis=1).repeat(
        3, axis=3
    )
    assert measure(noise)["direction"][0] < 0.2
    assert measure(slope)["direction"][0] > 0.99
    assert measure(noise)["grain"][0] > 3 * measure(slope)["grain"][0]


def test_turning_a_tile_changes_its_orientation_alone() -> None:
    tile = np.random.default_rng(1).integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)
    before, after = measure(tile), measure(np.rot90(tile, axes=(1, 2)))
    turned = (before.pop("orientation")[0] + 90) % 180
    assert after.pop("orientation")[0] == pytest.approx(turned, abs=1e-6)
    for name, value in before.items():
        assert after[name][0] == pytest.approx(value[0], abs=1e-9), name


def test_tiles_are_measured_one_by_one() -> None:
    tiles = np.random.default_rng(2).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    together = measure(tiles)
    assert {values.shape for values in together.values()} == {(5,)}
    for i in range(5):
        for name, value in measure(tiles[i : i + 1]).items():
            assert value[0] == pytest.approx(together[name][i])


def test_a_value_on_an_edge_belongs_to_the_bin_above() -> None:
    attribute = Attribute("some", (0.2, 0.4), ("low", "middle", "high"))
    assert [attribute.word(value) for value in (-1, 0.19, 0.2, 0.39, 0.4, 9)] == [
        *("low", "low", "middle", "middle", "high", "high")
    ]


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.name)
def test_every_bin_of_an_attribute_has_its_own_words(attribute: Attribute) -> None:
    assert len(attribute.words) == len(set(attribute.words)) == len(attribute.edges) + 1
    assert list(attribute.edges) == sorted(attribute.edges)
    assert attribute.name in measure(plain(0, 0, 0))


def test_no_two_attributes_share_a_word() -> None:
    words = [word for attribute in ATTRIBUTES for word in attribute.words]
    assert len(words) == len(set(words))


def test_phrases_say_what_is_seen() -> None:
    white, dark, horizontal, rising = phrases(
        np.concatenate([plain(255, 255, 255), plain(60, 50, 120), lines(0), lines(45)])
    )
    assert white[:4] == ("very pale stain", "blue grey", "no nuclei", "mostly white")
    assert white[4] == "flat"
    assert dark[:4] == ("very dark stain", "blue grey", "densely packed nuclei", "no white space")
    assert horizontal[-1] == "strongly aligned horizontal"
    assert rising[-1] == "strongly aligned rising diagonal"


def test_only_an_aligned_texture_has_its_orientation_named() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)
    (words,) = phrases(noise)
    assert words[-1] in ATTRIBUTES[-1].words


def test_thresholds_are_inside_the_range_of_colours() -> None:
    assert 0 < NUCLEAR_RED_BELOW < WHITE_ABOVE < 1


def test_a_caption_keeps_what_is_asked_in_order() -> None:
    assert caption(("a", "b", "c")) == "a, b, c"
    assert caption(("a", "b", "c"), (True, False, True)) == "a, c"
    assert caption(("a", "b"), (False, False)) == ""
