"""Training of the detector of outliers: tiles of PathMNIST train against pictures that are none.

Some are made of the tiles themselves: their patches moved about or mixed with those of others, their colours
turned, inverted or taken away. The others are drawn: noise of every roughness and colour, discs and
rectangles that cover one another as things in photographs do (dead leaves, Lee et al., *Occlusion Models for
Natural Images*, 2001), stripes and gradients. No photograph and no texture has a part in it. Pictures made
of tiles that differ too little from what they were made of, as plain background does, are left out.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from pathsynth.data import Split, load_split
from pathsynth.images import NATIVE_EDGE
from pathsynth.outliers import OutlierDetector, OutlierNetwork
from pathsynth.training.augment import dihedral, vary_stain
from pathsynth.training.engine import OptimConfig
from pathsynth.validator import from_model_range, symmetric_logits, to_model_range

PATCHES = (4, 7, 14)
TRUSTED_SHARE = 0.995
LEAST_CHANGE = 0.08  # mean absolute difference in [-1, 1]: ten grey levels
_EVALUATED = 4096


class OutlierConfig(BaseModel):
    """A run of the detector, from scratch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["outliers"]
    optim: OptimConfig
    stain_strength: float = Field(
        default=0.25, ge=0, le=1, description="By how much the stain of tiles may vary and still be theirs."
    )


def shuffle_patches(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each tile (N, 3, 28, 28) with its patches in an order of its own; their edge and where their grid
    starts are drawn for all.
    """
    patch = _one_of(PATCHES, generator)
    down, right = torch.randint(patch, (2,), generator=generator).tolist()
    patches = _cut(tiles.roll((down, right), (2, 3)), patch)
    order = torch.rand(patches.shape[:2], generator=generator).argsort(1)
    moved = patches.gather(1, order[:, :, None, None, None].expand_as(patches))
    return _join(moved).roll((-down, -right), (2, 3))


def mix_patches(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each tile (N, 3, 28, 28) with about half of its patches replaced by those of others of the batch."""
    patches = _cut(tiles, _one_of(PATCHES, generator))
    count, places = patches.shape[:2]
    source = torch.arange(count)[:, None].expand(count, places)
    others = torch.randint(count, (count, places), generator=generator)
    taken = torch.where(torch.rand(count, places, generator=generator) < 0.5, others, source)
    return _join(patches[taken, torch.arange(places)])


def other_colours(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each tile (N, 3, 28, 28) turned in hue by 45 to 315 degrees, inverted, or without colour."""
    count = len(tiles)
    angle = torch.empty(count).uniform_(np.pi / 4, 7 * np.pi / 4, generator=generator)
    turned = torch.einsum("nij,njhw->nihw", _turns_of_hue(angle), tiles)
    grey = tiles.mean(1, keepdim=True) * torch.empty(count, 1, 1, 1).uniform_(0.8, 1.8, generator=generator)
    which = torch.randint(3, (count, 1, 1, 1), generator=generator)
    result = torch.where(which == 0, turned, torch.where(which == 1, -tiles, grey.expand_as(tiles)))
    return result.clamp(-1, 1)


def noise(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise (N, 3, 28, 28) with a power spectrum of 1 / f^a, a from 0 to 4, colours mixed at random, and any
    mean and contrast.
    """
    white = torch.randn(count, 3, NATIVE_EDGE, NATIVE_EDGE, generator=generator)
    frequency = torch.fft.fftfreq(NATIVE_EDGE)
    radius = torch.hypot(frequency[:, None], frequency).clamp_min(1 / NATIVE_EDGE)
    power = torch.empty(count, 1, 1, 1).uniform_(0, 4, generator=generator)
    shaped = torch.fft.ifft2(torch.fft.fft2(white) * radius ** (-power / 2)).real
    shaped = shaped / shaped.std((1, 2, 3), keepdim=True)
    mixed = torch.einsum("nij,njhw->nihw", torch.randn(count, 3, 3, generator=generator), shaped)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.1, 0.6, generator=generator)
    mean = torch.empty(count, 3, 1, 1).uniform_(-0.8, 0.8, generator=generator)
    return (mixed * contrast + mean).clamp(-1, 1)


def dead_leaves(count: int, generator: torch.Generator) -> torch.Tensor:
    """Discs and rectangles of all sizes (N, 3, 28, 28), coloured or grey, shaded, the later over the earlier,
    on what `noise` draws.
    """
    pictures = noise(count, generator)
    place = torch.arange(NATIVE_EDGE) + 0.5
    down, across = place[None, :, None], place[None, None, :]
    grey = torch.rand(count, 1, 1, 1, generator=generator) < 0.3
    for _ in range(int(torch.randint(3, 13, (), generator=generator))):
        y, x = (torch.empty(count, 1, 1).uniform_(-4, NATIVE_EDGE + 4, generator=generator) for _ in range(2))
        size = torch.empty(count, 1, 1).uniform_(0.5, 3.2, generator=generator).exp() / 2
        longer = torch.empty(count, 1, 1).uniform_(-1, 1, generator=generator).exp()
        angle = torch.empty(count, 1, 1).uniform_(0, np.pi, generator=generator)
        one = (across - x) * angle.cos() + (down - y) * angle.sin()
        other = (down - y) * angle.cos() - (across - x) * angle.sin()
        box = torch.maximum(one.abs() / longer, other.abs() * longer)
        disc = torch.hypot(one / longer, other * longer)
        shape = torch.where(torch.rand(count, 1, 1, generator=generator) < 0.5, box, disc)
        covered = (size - shape + 0.5).clamp(0, 1)[:, None]
        colour = torch.empty(count, 3, 1, 1).uniform_(-1, 1, generator=generator)
        shade = torch.empty(count, 1, 1).uniform_(-0.04, 0.04, generator=generator) * one
        pictures = torch.lerp(pictures, colour + shade[:, None], covered)
    return torch.where(grey, pictures.mean(1, keepdim=True), pictures).clamp(-1, 1)


def stripes(count: int, generator: torch.Generator) -> torch.Tensor:
    """Waves (N, 3, 28, 28) of two directions, from a gradient to every other pixel, soft or sharp, between
    two colours.
    """
    place = torch.arange(NATIVE_EDGE, dtype=torch.float32)
    value = torch.zeros(count, NATIVE_EDGE, NATIVE_EDGE)
    for _ in range(2):
        angle = torch.empty(count, 1, 1).uniform_(0, np.pi, generator=generator)
        cycles = torch.empty(count, 1, 1).uniform_(-4.5, -0.7, generator=generator).exp()
        phase = torch.empty(count, 1, 1).uniform_(0, 2 * np.pi, generator=generator)
        along = place[None, :, None] * angle.sin() + place[None, None, :] * angle.cos()
        weight = torch.rand(count, 1, 1, generator=generator)
        value = value + weight * (2 * np.pi * cycles * along + phase).sin()
    sharp = torch.empty(count, 1, 1).uniform_(0, 3, generator=generator).exp()
    share = (value * sharp).tanh().add(1).div(2)[:, None]
    one, other = (torch.empty(count, 3, 1, 1).uniform_(-1, 1, generator=generator) for _ in range(2))
    return torch.lerp(one, other, share)


def outliers_of(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures that are no tiles (M, 3, 28, 28), made of tiles (N, 3, 28, 28) or drawn; M is at most N."""
    parts = tiles.tensor_split(6)
    made = [tiles[:0]]
    for part, change in zip(
        parts, (shuffle_patches, shuffle_patches, mix_patches, other_colours), strict=False
    ):
        if len(part):
            changed = change(part, generator)
            made.append(changed[(changed - part).abs().mean((1, 2, 3)) > LEAST_CHANGE])
    for part, draw in zip(parts[4:], (noise, dead_leaves), strict=True):
        striped = len(part) // 4
        made += [kind(n, generator) for kind, n in ((draw, len(part) - striped), (stripes, striped)) if n]
    return torch.cat(made)


class OutlierTask:
    """Binary cross-entropy between training tiles, turned and of varied stain, and `outliers_of` others."""

    def __init__(self, config: OutlierConfig, train: Split | None = None, val: Split | None = None) -> None:
        torch.manual_seed(config.optim.seed)
        self.config = config
        self.train, self.val = train or load_split("train"), val or load_split("val")
        self.model: nn.Module = OutlierNetwork().to(memory_format=torch.channels_last)

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (at most `size`, 3, 28, 28) in [-1, 1], a half of them tiles, and whether each is none."""
        chosen = torch.randint(len(self.train), (size,), generator=generator).numpy()
        tiles = dihedral(to_model_range(self.train.images[chosen]), generator)
        tiles = vary_stain(tiles, generator, self.config.stain_strength)
        known, others = tiles[: size // 2], outliers_of(tiles[size // 2 :], generator)
        strange = torch.cat([torch.zeros(len(known)), torch.ones(len(others))])
        return torch.cat([known, others]).contiguous(memory_format=torch.channels_last), strange

    def loss(
        self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        """Binary cross-entropy, in which tiles weigh as much as all else."""
        pictures, strange = batch
        device = next(model.parameters()).device
        logits, strange = model(pictures.to(device))[:, 0], strange.to(device)
        weight = torch.where(strange > 0, (strange == 0).sum() / strange.sum().clamp_min(1), 1.0)
        return F.binary_cross_entropy_with_logits(logits, strange, weight=weight)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Area under the ROC curve of 4,096 tiles of val against as many pictures made of them, or drawn."""
        chosen = np.linspace(0, len(self.val) - 1, min(_EVALUATED, len(self.val)), dtype=np.int64)
        tiles = to_model_range(self.val.images[chosen])
        others = outliers_of(tiles, torch.Generator().manual_seed(1))
        scores = [_logits(model, from_model_range(each)) for each in (tiles, others)]
        truth = np.repeat([0, 1], [len(each) for each in scores])
        return {"val_auroc": float(roc_auc_score(truth, np.concatenate(scores)))}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the detector; 0.5 % of val are beyond its limit."""
        logits = _logits(model.eval(), self.val.images)
        median, limit = np.quantile(logits, [0.5, TRUSTED_SHARE]).tolist()
        OutlierDetector(model, median, limit).save(folder / "outliers")


def _logits(model: nn.Module, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = symmetric_logits(model, tiles)[:, 0].numpy()
    return logits


def _one_of(values: tuple[int, ...], generator: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (), generator=generator))]


def _cut(tiles: torch.Tensor, patch: int) -> torch.Tensor:
    """Patches (N, P, 3, p, p) of tiles (N, 3, S, S), row by row."""
    side = tiles.shape[-1] // patch
    parts = tiles.reshape(len(tiles), 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(len(tiles), side * side, 3, patch, patch)


def _join(patches: torch.Tensor) -> torch.Tensor:
    """Undo `_cut`."""
    count, places, _, patch, _ = patches.shape
    side = round(places**0.5)
    parts = patches.reshape(count, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(count, 3, side * patch, side * patch)


def _turns_of_hue(angles: torch.Tensor) -> torch.Tensor:
    """Rotations (N, 3, 3) of RGB about the grey axis."""
    cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
    grey = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    return cosine * torch.eye(3) + (1 - cosine) * grey + sine * across
