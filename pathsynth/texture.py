"""The texture of generated tiles, given the strength and the colours of that of real ones of the tissue.

A generator gives some tissues too much fine texture and others too little, in all of their tiles alike, and
not quite in their colours. A 3 x 3 matrix for each frequency, the same for every tile of a tissue, corrects
the mean power and how the colours go together. It is applied to the cosine transform (DCT-II) of a tile,
which continues it mirrored beyond its border, so that no edge wraps around.

Where tiles of a tissue are too much alike in how strong their texture is, empty background foremost, no
matrix helps. There a tile gets, before its matrices, the strength of the real tile that has its rank among
real ones: what is flat gets flatter, what is dirty dirtier, and the order stays as it was (quantile mapping,
as histogram matching does it with colours). `pathsynth.training.texture` finds matrices and quantiles.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, model_validator
from scipy.fft import dct
from torch import nn

Matrix = Sequence[Sequence[float]]
FloatArray = npt.NDArray[np.float64]
_LEAST_STRENGTH: Final = 1e-4
_LARGEST_CHANGE: Final = 4.0


class Variety(BaseModel):
    """How the strength of texture varies within a tissue: quantiles of `log_strengths`, from the least to the
    most in equal steps, of tiles that are `made` and of `real` ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    made: list[float]
    real: list[float]

    @model_validator(mode="after")
    def _of_one_shape(self) -> Self:
        if len(self.made) != len(self.real) or len(self.made) < 2:
            raise ValueError("wants as many quantiles of real as of made tiles, and two or more")
        if (np.diff(self.made) < 0).any() or (np.diff(self.real) < 0).any():
            raise ValueError("wants quantiles in rising order")
        return self


@lru_cache
def _transform(edge: int) -> torch.Tensor:
    """The matrix (edge, edge) of the orthonormal DCT-II."""
    return torch.from_numpy(dct(np.eye(edge), axis=0, norm="ortho")).float()


def cosine_transform(tiles: torch.Tensor) -> torch.Tensor:
    """Coefficients (N, C, S, S) of float tiles (N, C, S, S)."""
    matrix = _transform(tiles.shape[-1]).to(tiles)
    return matrix @ tiles @ matrix.T


def _inverse(spectrum: torch.Tensor) -> torch.Tensor:
    """Float tiles (N, C, S, S) of coefficients (N, C, S, S)."""
    matrix = _transform(spectrum.shape[-1]).to(spectrum)
    return matrix.T @ spectrum @ matrix


def cycles(edge: int) -> FloatArray:
    """Radial frequency, in cycles a tile, of each coefficient (edge, edge); 0 of the mean."""
    along = np.arange(edge) / 2
    frequency: FloatArray = np.hypot(along[:, np.newaxis], along)
    return frequency


def between(matrices: Sequence[Matrix], edge: int) -> torch.Tensor:
    """`matrices` (3 x 3 each) for 1, 2, 3 ... cycles a tile, interpolated for each coefficient of a tile
    (edge, edge, 3, 3). Higher frequencies have the last, the mean none.
    """
    known, frequency = np.array(matrices), cycles(edge)
    place = np.clip(frequency - 1, 0, len(known) - 1)
    below = np.minimum(place.astype(np.int64), max(0, len(known) - 2))
    above = np.minimum(below + 1, len(known) - 1)
    share = (place - below)[..., np.newaxis, np.newaxis]
    mixed = (1 - share) * known[below] + share * known[above]
    mixed[0, 0] = np.eye(3)
    return torch.from_numpy(mixed).float()


def correct(tiles: torch.Tensor, matrices: Sequence[Matrix]) -> torch.Tensor:
    """Float RGB tiles (N, 3, S, S) whose colours at 1, 2, 3 ... cycles a tile went through `matrices` (3 x 3
    each). Mean colours stay.
    """
    mixed = between(matrices, tiles.shape[-1])
    return _inverse(torch.einsum("hwij,njhw->nihw", mixed, cosine_transform(tiles)))


def rings(edge: int, count: int) -> npt.NDArray[np.int64]:
    """To which of `count` frequencies each coefficient (edge, edge) belongs, from 0; -1 for the mean. Half a
    cycle belongs to the first, what is beyond the last to that.
    """
    ring = np.clip(np.rint(cycles(edge)).astype(np.int64), 1, count) - 1
    ring[0, 0] = -1
    return ring


def log_strengths(tiles: torch.Tensor) -> FloatArray:
    """Logarithm of the standard deviation (N,) of float RGB tiles (N, 3, S, S) about their mean colours."""
    values = tiles.detach().double()
    variances = values.var(dim=(2, 3), correction=0).mean(1).cpu().numpy()
    strengths: FloatArray = np.log(np.sqrt(variances) + _LEAST_STRENGTH)
    return strengths


def vary(tiles: torch.Tensor, variety: Variety) -> torch.Tensor:
    """Float RGB tiles (N, 3, S, S) with the strength of real tiles of their rank, at most four times or a
    quarter of what it is. Mean colours stay.
    """
    found = log_strengths(tiles).clip(variety.made[0], variety.made[-1])
    changes = np.interp(found, variety.made, variety.real) - found
    gains = torch.from_numpy(np.exp(changes).clip(1 / _LARGEST_CHANGE, _LARGEST_CHANGE)).to(tiles)
    mean = tiles.mean(dim=(2, 3), keepdim=True)
    return mean + gains[:, None, None, None] * (tiles - mean)


class TextureCorrection(nn.Module):
    """Corrects tiles of several tissues at once, on the device it is moved to; gradients pass.

    `matrices` are those of `correct` for each tissue in turn, `varieties` those of `vary`; None where tiles
    stay as they are.
    """

    matrices: torch.Tensor

    def __init__(
        self,
        matrices: Sequence[Sequence[Matrix] | None],
        varieties: Sequence[Variety | None],
        edge: int,
    ) -> None:
        super().__init__()
        unchanged = [np.eye(3).tolist()]
        self.register_buffer("matrices", torch.stack([between(each or unchanged, edge) for each in matrices]))
        self._varieties = {i: each for i, each in enumerate(varieties) if each is not None}

    def forward(self, tiles: torch.Tensor, tissues: torch.Tensor) -> torch.Tensor:
        """Float RGB tiles (N, 3, S, S) of tissues (N,), corrected."""
        for tissue, variety in self._varieties.items():
            own = torch.nonzero(tissues == tissue)[:, 0]
            if len(own):
                tiles = tiles.index_put((own,), vary(tiles[own], variety))
        mixed = self.matrices[tissues]
        return _inverse(torch.einsum("nhwij,njhw->nihw", mixed, cosine_transform(tiles)))
