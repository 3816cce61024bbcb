"""The visible mark: where it is, where it never is, and who can turn it off."""

import numpy as np
import pytest

from pathsynth.images import upscale
from pathsynth.mark import LEGEND, MARKED_SHARE, is_marking, marked
from tests.fakes import smooth_tile


@pytest.mark.parametrize("edge", [112, 120, 168, 224, 333, 512, 1024])
def test_the_mark_is_small_and_in_the_lower_right_corner(edge: int) -> None:
    picture = upscale(smooth_tile(1), edge)
    rows, columns = np.nonzero((marked(picture) != picture).any(axis=2))
    assert rows.min() >= edge * (1 - MARKED_SHARE)
    assert columns.min() > edge / 2
    assert len(rows) < 0.06 * edge**2


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_the_legend_stands_out_from_any_ground(shade: int) -> None:
    picture = np.full((224, 224, 3), shade, dtype=np.uint8)
    changed = marked(picture)[212:, 180:].astype(int)
    assert changed.max() - np.median(changed) > 100


@pytest.mark.parametrize("shape", [(28, 28), (111, 111), (111, 500), (500, 111)])
def test_a_picture_with_an_edge_below_112_px_is_left_alone(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 200, dtype=np.uint8)
    assert np.array_equal(marked(picture), picture)


def test_the_picture_itself_is_never_changed() -> None:
    picture = upscale(smooth_tile(1), 224)
    before = picture.copy()
    marked(picture)[:] = 0
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("value", ["off", "OFF", " off ", "0", "no", "false"])
def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PATHSYNTH_VISIBLE_MARK", value)
    picture = upscale(smooth_tile(1), 224)
    assert not is_marking()
    assert np.array_equal(marked(picture), picture)


@pytest.mark.parametrize("value", ["", "on", "1", "offf"])
def test_anything_else_leaves_it_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PATHSYNTH_VISIBLE_MARK", value)
    picture = upscale(smooth_tile(1), 224)
    assert (marked(picture) != picture).any()
    assert LEGEND == "synthetic"
