"""How far tiles are from what a text asks of them, as a loss: the attributes of `pathsynth.attributes`, with
gradients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchvision.transforms.functional import gaussian_blur

from pathsynth.attributes import ATTRIBUTES, NUCLEAR_RED_BELOW, ORIENTATIONS, WHITE_ABOVE

_SOFTNESS = 0.02  # about five grey levels, within which a pixel is counted in part by the gradient
_SCALES = torch.tensor([(a.edges[-1] - a.edges[0]) / len(a.edges) for a in ATTRIBUTES])
_DIRECTION = [a.name for a in ATTRIBUTES].index("direction")


@dataclass(frozen=True)
class Asked:
    """What texts ask for: each attribute (N, 7) between `low` and `high`, which are infinite where nothing is
    said, and `axis` (N, 2), the doubled angle of the orientation as a unit vector, 0 where none is said.
    """

    low: torch.Tensor
    high: torch.Tensor
    axis: torch.Tensor


def asked_by(texts: Sequence[str]) -> Asked:
    """What captions ask for, after the semicolon of a domain prompt or without one."""
    low = torch.full((len(texts), len(ATTRIBUTES)), -math.inf)
    high = torch.full_like(low, math.inf)
    axis = torch.zeros(len(texts), 2)
    for row, text in enumerate(texts):
        said = text.rpartition("; ")[2].split(", ")
        for column, attribute in enumerate(ATTRIBUTES):
            for part in said:
                word, orientation = _oriented(part)
                if word not in attribute.words:
                    continue
                at = attribute.words.index(word)
                if at > 0:
                    low[row, column] = attribute.edges[at - 1]
                if at < len(attribute.edges):
                    high[row, column] = attribute.edges[at]
                if orientation is not None:
                    angle = 2 * math.pi * orientation / len(ORIENTATIONS)
                    axis[row] = torch.tensor([math.cos(angle), math.sin(angle)])
    return Asked(low, high, axis)


def _oriented(part: str) -> tuple[str, int | None]:
    """A wording without its orientation, and which of `ORIENTATIONS` that is."""
    for index, orientation in enumerate(ORIENTATIONS):
        if part.endswith(f" {orientation}"):
            return part.removesuffix(f" {orientation}"), index
    return part, None


def attributes_of(tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attributes (N, 7) of tiles (N, 3, S, S) in [-1, 1], in the order of `ATTRIBUTES` and with the values of
    `pathsynth.attributes.measure`, and the direction as a vector (N, 2) of the doubled angle of the texture.

    Shares of pixels above a limit have the gradient of a smooth step there.
    """
    rgb = tiles.float().add(1).mul(0.5)
    grey = rgb.mean(1)
    contrast = grey.var((1, 2), correction=0).add(1e-8).sqrt()
    direction, energy = _direction(grey)
    values = [
        grey.mean((1, 2)),
        (rgb[:, 0] - rgb[:, 2]).mean((1, 2)),
        _share_above(NUCLEAR_RED_BELOW - rgb[:, 0]),
        _share_above(grey - WHITE_ABOVE),
        contrast,
        energy.add(1e-10).sqrt() / (contrast + 1e-3),
        direction.square().sum(1).add(1e-10).sqrt(),
    ]
    return torch.stack(values, dim=1), direction


def directions_of(tiles: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    """The direction (N, 2 K) of tiles (N, 3, S, S) in [-1, 1] as in `attributes_of`, after Gaussian blurs of
    each of K widths in px, 0 for none: at a larger scale, that of coarser structure.
    """
    grey = tiles.float().add(1).mul(0.5).mean(1)
    return torch.cat([_direction(_blurred(grey, scale))[0] for scale in scales], dim=1)


def _direction(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Direction (N, 2) of grey tiles (N, S, S), and the mean square of their gradient (N,)."""
    rows, columns = torch.gradient(grey, dim=(1, 2))
    along_x, along_y = columns.square().mean((1, 2)), rows.square().mean((1, 2))
    across = (columns * rows).mean((1, 2))
    energy = along_x + along_y
    # Perpendicular to the gradient, and upright, as rows grow downwards: the doubled angle turns twice.
    return torch.stack([along_y - along_x, 2 * across], dim=1) / (energy + 1e-6).unsqueeze(1), energy


def _blurred(grey: torch.Tensor, scale: float) -> torch.Tensor:
    """Grey tiles (N, S, S) after a Gaussian blur `scale` px wide, mirrored at the border."""
    if scale == 0:
        return grey
    blurred: torch.Tensor = gaussian_blur(grey, 2 * math.ceil(3 * scale) + 1, scale)
    return blurred


def _share_above(excess: torch.Tensor) -> torch.Tensor:
    """Share (N,) of the pixels of (N, S, S) that are above zero."""
    soft = torch.sigmoid(excess / _SOFTNESS).mean((1, 2))
    hard = (excess > 0).float().mean((1, 2))
    return soft + (hard - soft).detach()


def distance_from_wording(tiles: torch.Tensor, asked: Asked) -> torch.Tensor:
    """Mean over tiles (N, 3, S, S) in [-1, 1] of how far their attributes are outside what is asked for, each
    in units of the mean width of its wordings, summed over attributes (scalar).
    """
    device = tiles.device
    values, direction = attributes_of(tiles)
    axis = asked.axis.to(device)
    along = (direction * axis).sum(1)  # only what runs the way that is asked for counts as direction
    values = values.clone()
    values[:, _DIRECTION] = torch.where(axis.any(1), along, values[:, _DIRECTION])
    below = (asked.low.to(device) - values).clamp_min(0)
    above = (values - asked.high.to(device)).clamp_min(0)
    outside: torch.Tensor = (below + above) / _SCALES.to(device)
    return outside.sum(1).mean()
