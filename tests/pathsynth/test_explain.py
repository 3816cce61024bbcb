"""Grad-CAM overlays."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pathsynth.errors import ImageError, RequestError
from pathsynth.explain import grad_cam, overlay
from pathsynth.tissues import CODES
from pathsynth.validator import build_classifier


class RedSeeker(nn.Module):
    """Nine classes of which only the first rises with red; `layer2` has 7 x 7 places, as in the validator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer2 = nn.AvgPool2d(4)
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0]] + [[0.0, -1.0, 0.0]] * 8))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        places: torch.Tensor = self.layer2(tiles)
        return places.mean(dim=(2, 3)) @ self.weight.T


def with_red_corner() -> npt.NDArray[np.uint8]:
    tile = np.zeros((28, 28, 3), dtype=np.uint8)
    tile[:8, 20:, 0] = 255
    return tile


def test_the_map_is_high_where_the_evidence_is() -> None:
    heat = grad_cam(RedSeeker(), with_red_corner(), CODES[0])
    assert heat.shape == (28, 28)
    assert heat.dtype == np.float32
    assert heat.max() == heat[:8, 20:].max() == 1
    assert heat[12:, :16].max() == 0


def test_without_evidence_the_map_is_empty() -> None:
    white = np.full((28, 28, 3), 255, dtype=np.uint8)
    assert not grad_cam(RedSeeker(), white, CODES[1]).any()


def test_a_turned_or_mirrored_tile_has_the_turned_or_mirrored_map() -> None:
    torch.manual_seed(0)
    model = build_classifier("resnet18").eval()
    tile = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    heat = grad_cam(model, tile, "TUM")
    assert 0 <= heat.min() < heat.max() == 1
    assert np.allclose(grad_cam(model, np.rot90(tile), "TUM"), np.rot90(heat), atol=1e-3)
    assert np.allclose(grad_cam(model, tile[:, ::-1], "TUM"), heat[:, ::-1], atol=1e-3)


def test_explaining_leaves_no_trace_in_the_model() -> None:
    model = RedSeeker()
    grad_cam(model, with_red_corner(), CODES[0])
    assert model.weight.grad is None
    assert not model.layer2._forward_hooks


def test_an_overlay_turns_green_only_where_the_evidence_is() -> None:
    picture = overlay(RedSeeker(), np.kron(with_red_corner(), np.ones((10, 10, 1), np.uint8)), CODES[0])
    assert picture.shape == (224, 224, 3)
    assert picture[10, 214, 1] > 100
    assert picture[200, 10].tolist() == [0, 0, 0]


def test_a_small_image_or_an_unknown_tissue_is_refused() -> None:
    with pytest.raises(ImageError, match="at least 28 px"):
        overlay(RedSeeker(), np.zeros((27, 27, 3), np.uint8), CODES[0])
    with pytest.raises(RequestError, match="no tissue"):
        overlay(RedSeeker(), with_red_corner(), "XXX")
