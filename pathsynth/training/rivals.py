"""Rivals: networks that tell generated tiles from real ones, for training against them.

Projection of text and tissue after Miyato and Koyama, *cGANs with Projection Discriminator*, 2018; deviation
within the batch after Karras et al., *Progressive Growing of GANs*, 2018; augmentation of what the rival sees
after Zhao et al., *Differentiable Augmentation*, 2020. A keen rival sees faint colours and fine texture as
strong as all else; one with bounded slope alone does not.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from pathsynth.text import CONTEXT_WIDTH
from pathsynth.tissues import TISSUES

_SHIFT = 3
_LEAST_DEVIATION = 1e-3
_FAINT = 0.25


class TileRival(nn.Module):
    """Says how real tiles look beside their texts and tissues: logits of fine patches (N, 14, 14), of coarse
    ones (N, 7, 7), of the whole (N, 1, 1), and of every place of each kind of features of another network.

    Tiles are (N, channels, 28, 28), texts (N, CONTEXT_WIDTH), tissues (N,); `seen_by_other` has the channels
    of the features. `steps` counts how often it was trained, so that a resumed run knows.
    """

    steps: torch.Tensor

    def __init__(self, width: int = 64, seen_by_other: Sequence[int] = (), channels: int = 3) -> None:
        super().__init__()
        once, twice, four = width, 2 * width, 4 * width

        def layer(inputs: int, outputs: int, edge: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, edge, stride, padding=(edge - 1) // 2)
            return nn.Sequential(spectral_norm(convolution), nn.LeakyReLU(0.2))

        self.fine = nn.Sequential(
            layer(channels, once, 3, 1), layer(once, twice, 4, 2), layer(twice, twice, 3, 1)
        )
        self.coarse = nn.Sequential(layer(twice, four, 4, 2), layer(four, four, 3, 1))
        self.whole = layer(four + 1, four, 3, 2)
        self.other = nn.ModuleList(layer(seen, four, 1, 1) for seen in seen_by_other)
        widths = (twice, four, four, *(four for _ in seen_by_other))
        self.real = nn.ModuleList(nn.Conv2d(each, 1, 1) for each in widths)
        self.of_text = nn.ModuleList(nn.Linear(CONTEXT_WIDTH, each) for each in widths)
        self.of_tissue = nn.ModuleList(nn.Embedding(len(TISSUES), each) for each in widths)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        tiles: torch.Tensor,
        text: torch.Tensor,
        tissues: torch.Tensor,
        features: Sequence[torch.Tensor] = (),
    ) -> list[torch.Tensor]:
        fine = self.fine(tiles)
        coarse = self.coarse(fine)
        deviation = coarse.float().std(dim=0, correction=0).mean().to(coarse.dtype)
        varied = deviation.expand(len(tiles), 1, *coarse.shape[2:])
        whole = self.whole(torch.cat([coarse, varied], dim=1)).mean((2, 3), keepdim=True)
        others = [layer(each) for layer, each in zip(self.other, features, strict=True)]
        logits = []
        parts = zip((fine, coarse, whole, *others), self.real, self.of_text, self.of_tissue, strict=True)
        for seen, real, of_text, of_tissue in parts:
            asked = (of_text(text) + of_tissue(tissues)) / seen.shape[1] ** 0.5
            logits.append(real(seen).squeeze(1) + torch.einsum("nchw,nc->nhw", seen, asked))
        return logits


class EvenColours(nn.Module):
    """Tiles (N, 3, S, S) as (N, 6 or 9, S, S): their three principal colours, and those of what a blur over
    3 x 3 px takes from them, each with unit deviation over the known tiles (M, 3, S, S).

    In a stained tile nearly all that differs lies along one colour, and fine texture is faint. A rival whose
    layers are normalised by their spectrum barely sees the other two, nor the finest texture, where networks
    without that bound tell generated tiles from real ones.

    With `faint` three more channels have that texture with its strong part levelled off (hyperbolic tangent,
    half way at about an eighth of a deviation): the thin membrane of a fat cell then counts as much as a dark
    nucleus.
    """

    turns: torch.Tensor

    def __init__(self, known: torch.Tensor, faint: bool = False) -> None:
        super().__init__()
        self.faint = faint
        turns = [_evened(each) for each in (known, _fine(known))]
        self.register_buffer("turns", torch.stack(turns))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        # In half precision a step of one level would be lost, which is what is to be seen.
        with torch.autocast(tiles.device.type, enabled=False):
            parts = zip(self.turns, (tiles.float(), _fine(tiles.float())), strict=True)
            seen = [torch.einsum("kc,nchw->nkhw", turn, each) for turn, each in parts]
            if self.faint:
                seen.append((seen[-1] / _FAINT).tanh())
        return torch.cat(seen, dim=1).contiguous(memory_format=torch.channels_last)


def _fine(tiles: torch.Tensor) -> torch.Tensor:
    """What a blur over 3 x 3 px takes from tiles (N, C, S, S)."""
    return tiles - F.avg_pool2d(F.pad(tiles, (1,) * 4, mode="reflect"), 3, 1)


def _evened(known: torch.Tensor) -> torch.Tensor:
    """The matrix (3, 3) from the colours of pictures (M, 3, S, S) to their principal ones, each divided by
    its deviation.
    """
    values, vectors = torch.linalg.eigh(torch.cov(known.transpose(0, 1).flatten(1)))
    matrix: torch.Tensor = vectors.T / values.clamp_min(_LEAST_DEVIATION**2).sqrt()[:, None]
    return matrix


class KeenRival(TileRival):
    """A `TileRival` with a second of its kind, which sees pictures with `EvenColours`: logits of both.

    The second comes last, so that a run may go on with a keen rival where it had the other.
    """

    def __init__(self, colours: EvenColours, width: int = 64, seen_by_other: Sequence[int] = ()) -> None:
        super().__init__(width, seen_by_other)
        self.keen = TileRival(width, channels=9 if colours.faint else 6)
        self.colours = colours

    def forward(
        self,
        tiles: torch.Tensor,
        text: torch.Tensor,
        tissues: torch.Tensor,
        features: Sequence[torch.Tensor] = (),
    ) -> list[torch.Tensor]:
        plain = super().forward(tiles, text, tissues, features)
        return plain + self.keen.forward(self.colours(tiles), text, tissues)


def shifted(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Tiles (N, C, S, S), each moved by up to 3 px either way, mirrored at the border."""
    size = tiles.shape[-1]
    padded = F.pad(tiles, (_SHIFT,) * 4, mode="reflect")
    by = torch.randint(2 * _SHIFT + 1, (len(tiles), 2), generator=generator).tolist()
    moved = [
        tile[:, row : row + size, column : column + size]
        for tile, (row, column) in zip(padded, by, strict=True)
    ]
    return torch.stack(moved).contiguous(memory_format=torch.channels_last)
