"""Augmentation of histology batches: the eight symmetries of the square, and stain variation.

A tile has no up or down, so every rotation by 90 degrees and every flip is as real as the original. Stain
varies between laboratories; it is varied in optical density along haematoxylin, eosin and the residual,
after Tellez et al., *Quantifying the effects of data augmentation and stain color normalization*, Medical
Image Analysis 2019.
"""

import torch
from skimage.color import hed_from_rgb, rgb_from_hed

_TO_STAIN = torch.tensor(hed_from_rgb, dtype=torch.float32)
_FROM_STAIN = torch.tensor(rgb_from_hed, dtype=torch.float32)


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
    count = len(images)
    density = -torch.log((images + 1).mul(0.5).clamp_min(1 / 255))
    scale = 1 + strength * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    shift = 0.25 * strength * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    stains = torch.einsum("nchw,cs->nshw", density, _TO_STAIN) * scale + shift
    varied = torch.exp(-torch.einsum("nshw,sc->nchw", stains, _FROM_STAIN))
    return varied.mul(2).sub(1).clamp(-1, 1)
