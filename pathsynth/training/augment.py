"""Augmentation of histology batches: the eight symmetries of the square, and stain variation.

A tile has no up or down, so every rotation by 90 degrees and every flip is as real as the original. Stain
varies between laboratories; it is varied in optical density along haematoxylin, eosin and the residual,
after Tellez et al., *Quantifying the effects of data augmentation and stain color normalization*, Medical
Image Analysis 2019. What happens to pictures on their way is imitated too: JPEG, blur, another hue or
brightness.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from skimage.color import hed_from_rgb, rgb_from_hed

from pathsynth.robustness import blur, brighten, jpeg, turn_hue

Tiles = npt.NDArray[np.uint8]

_TO_STAIN = torch.tensor(hed_from_rgb, dtype=torch.float32)
_FROM_STAIN = torch.tensor(rgb_from_hed, dtype=torch.float32)
# Each with the range that its strength is drawn from.
_DISTURBANCES: Final[tuple[tuple[Callable[[Tiles, float], Tiles], float, float], ...]] = (
    (lambda tiles, quality: jpeg(tiles, round(quality)), 10, 90),
    (blur, 0.3, 1.5),
    (turn_hue, -30, 30),
    (brighten, 0.7, 1.3),
)


def dihedral(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image (N, C, S, S) under a random one of the eight symmetries of the square."""
    which = torch.randint(8, (len(images),), generator=generator)
    result = torch.empty_like(images)
    for symmetry in range(8):
        chosen = which == symmetry
        turned = torch.rot90(images[chosen], symmetry % 4, dims=(2, 3))
        result[chosen] = turned.flip(3) if symmetry >= 4 else turned
    return result


def vary_stain(images: torch.Tensor, generator: torch.Generator, strength: float) -> torch.Tensor:
    """Scale and shift each stain of each image by up to `strength`; images float (N, 3, H, W) in [-1, 1]."""
    if strength == 0:
        return images
    count, device = len(images), images.device
    density = -torch.log((images + 1).mul(0.5).clamp_min(1 / 255))
    scale = 1 + strength * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1).to(device)
    shift = 0.25 * strength * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1).to(device)
    stains = torch.einsum("nchw,cs->nshw", density, _TO_STAIN.to(device)) * scale + shift
    varied = torch.exp(-torch.einsum("nshw,sc->nchw", stains, _FROM_STAIN.to(device)))
    return varied.mul(2).sub(1).clamp(-1, 1)


def disturb(tiles: Tiles, generator: torch.Generator, share: float) -> Tiles:
    """RGB tiles (N, H, W, 3), on average `share` of them stored as JPEG, blurred, turned in hue or made
    brighter or darker, each as strongly as drawn.
    """
    if share == 0:
        return tiles  # and nothing is drawn, so that runs without stay as they were
    result = tiles.copy()
    for i in torch.nonzero(torch.rand(len(tiles), generator=generator) < share)[:, 0].tolist():
        which = int(torch.randint(len(_DISTURBANCES), (), generator=generator))
        change, least, most = _DISTURBANCES[which]
        strength = least + (most - least) * float(torch.rand((), generator=generator))
        result[i : i + 1] = change(tiles[i : i + 1], strength)
    return result
