"""Where the validator looked: Grad-CAM overlays.

Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks*, 2017. The last stages of the validator
see a 28-px tile as 4 x 4 and 2 x 2 positions, too coarse to point at anything, so the map comes from
`layer2`, the deepest stage that keeps 7 x 7. One position covers 4 px of the tile, 16 um; its receptive field
is wider.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from pathsynth.images import NATIVE_EDGE, Picture, to_native
from pathsynth.tissues import by_code
from pathsynth.validator import to_model_range

EXPLAINED_STAGE: Final = "layer2"
OVERLAY_EDGE: Final = 224

_MARK: Final = np.array([0.0, 230.0, 118.0], dtype=np.float32)  # green, which H&E does not have
_STRENGTH: Final = 0.65


def grad_cam(model: nn.Module, tile: Picture, tissue: str) -> npt.NDArray[np.float32]:
    """How much each place of a tile (28, 28, 3) speaks for a tissue: float (28, 28), at its strongest 1.

    The mean over the eight symmetries of the square, as the validator's answer is. All zero when nothing
    speaks for the tissue.

    Raises:
        RequestError: there is no tissue with the code `tissue`.
    """
    index = by_code(tissue).index
    views = to_model_range(np.stack([_turned(tile, symmetry) for symmetry in range(8)]))
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept.append(output)

    handle = model.get_submodule(EXPLAINED_STAGE).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            score = model(views.requires_grad_())[:, index].sum()
            (slopes,) = torch.autograd.grad(score, kept)
    finally:
        handle.remove()
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    maps = (weights * kept[0].detach()).sum(dim=1, keepdim=True).relu()
    full = interpolate(maps, size=(NATIVE_EDGE, NATIVE_EDGE), mode="bilinear", align_corners=False)[
        :, 0
    ].numpy()
    heat = np.mean([_turned_back(each, symmetry) for symmetry, each in enumerate(full)], axis=0)
    peak = float(heat.max())
    return np.asarray(heat / peak if peak > 0 else heat, dtype=np.float32)


def overlay(model: nn.Module, image: Picture, tissue: str) -> Picture:
    """The central square of an image at 224 px (224, 224, 3), green where it speaks for the tissue.

    Raises:
        ImageError: an edge is shorter than 28 px.
        RequestError: there is no tissue with the code `tissue`.
    """
    heat = grad_cam(model, to_native(image), tissue)
    size = (OVERLAY_EDGE, OVERLAY_EDGE)
    edge = min(image.shape[:2])
    top, left = (image.shape[0] - edge) // 2, (image.shape[1] - edge) // 2
    square = Image.fromarray(np.ascontiguousarray(image[top : top + edge, left : left + edge]))
    shown = np.asarray(square.resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    smooth = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC))
    share = _STRENGTH * np.clip(smooth, 0, 1)[..., None]
    marked: Picture = np.rint(shown * (1 - share) + _MARK * share).astype(np.uint8)
    return marked


def _turned(tile: Picture, symmetry: int) -> Picture:
    turned = np.rot90(tile, symmetry % 4)
    return turned[:, ::-1] if symmetry >= 4 else turned


def _turned_back(heat: npt.NDArray[np.float32], symmetry: int) -> npt.NDArray[np.float32]:
    return np.rot90(heat[:, ::-1] if symmetry >= 4 else heat, -(symmetry % 4))
