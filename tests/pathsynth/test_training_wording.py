"""Attributes with gradients, and the distance from what a text asks."""

import numpy as np
import pytest
import torch

from pathsynth.attributes import ATTRIBUTES, Attribute, caption, measure, phrases
from pathsynth.training.wording import asked_by, attributes_of, directions_of, distance_from_wording
from pathsynth.validator import to_model_range
from tests import tiny


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.stack([tiny.tissue_like(i, 28) for i in range(24)])


def test_values_are_those_that_are_measured(tiles: np.ndarray) -> None:
    measured = measure(tiles)
    values, direction = attributes_of(to_model_range(tiles))
    for column, attribute in enumerate(ATTRIBUTES):
        assert values[:, column].numpy() == pytest.approx(measured[attribute.name], abs=2e-3)
    angles = np.degrees(0.5 * np.arctan2(direction[:, 1].numpy(), direction[:, 0].numpy()))
    apart = (angles - measured["orientation"]) % 180
    assert np.minimum(apart, 180 - apart) == pytest.approx(0, abs=0.1)


def test_a_tile_is_at_its_own_wording_and_far_from_others(tiles: np.ndarray) -> None:
    asked = asked_by([f"fat; {caption(words)}" for words in phrases(tiles)])
    images = to_model_range(tiles)
    assert float(distance_from_wording(images, asked)) < 0.1
    assert float(distance_from_wording(-images, asked)) > 1


def test_what_is_not_said_is_not_asked(tiles: np.ndarray) -> None:
    asked = asked_by(["adipose tissue", "", "muscle; pale stain, aligned vertical"])
    assert not asked.low[:2].isfinite().any()
    assert not asked.high[:2].isfinite().any()
    assert asked.low[2].isfinite().tolist() == [True, *[False] * 5, True]
    assert asked.axis[2].tolist() == pytest.approx([-1, 0], abs=1e-6)
    assert float(distance_from_wording(to_model_range(tiles[:2]), asked_by(["fat", ""]))) == 0


@pytest.mark.parametrize("attribute", [a for a in ATTRIBUTES if a.name != "direction"], ids=lambda a: a.name)
def test_steps_against_the_gradient_lead_to_the_wording(attribute: Attribute, tiles: np.ndarray) -> None:
    for word in (attribute.words[0], attribute.words[-1]):
        images = to_model_range(tiles[:4]).requires_grad_(True)
        asked = asked_by([f"fat; {word}"] * 4)
        optimizer = torch.optim.Adam([images], 0.02)
        before = float(distance_from_wording(images, asked).detach())
        for _ in range(60):
            optimizer.zero_grad()
            distance_from_wording(images, asked).backward()
            optimizer.step()
        assert float(distance_from_wording(images, asked)) <= 0.5 * before


def test_lines_the_wrong_way_are_no_direction() -> None:
    lines = np.broadcast_to((np.arange(28) % 6 < 3)[:, None, None] * 200, (1, 28, 28, 3)).astype(np.uint8)
    along, across = (
        float(distance_from_wording(to_model_range(lines), asked_by([f"x; strongly aligned {way}"])))
        for way in ("horizontal", "vertical")
    )
    assert along == 0
    assert across > 1


def test_a_larger_scale_sees_the_coarser_of_two_directions() -> None:
    across, down = np.arange(28) % 14 < 7, np.arange(28) % 2 < 1
    pixels = 60 + 80 * across[:, np.newaxis] + 90 * down[np.newaxis]  # broad rows, fine columns
    lines = to_model_range(np.repeat(pixels[np.newaxis, :, :, np.newaxis], 3, axis=3).astype(np.uint8))
    fine, coarse = directions_of(lines.roll(0), [0, 2]).view(2, 2)
    assert fine.tolist() == pytest.approx(attributes_of(lines)[1][0].tolist())
    assert coarse[0] > 0.9  # horizontal
    assert coarse[0] > fine[0] + 0.1
