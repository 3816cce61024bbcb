"""The texture of generated tiles, given the strength and the colours of that of real ones of the tissue.

A generator gives some tissues too much fine texture and others too little, in all of their tiles alike, and
not quite in their colours. A 3 x 3 matrix for each frequency, the same for every tile of a tissue, corrects
the mean power and how the colours go together. It is applied to the cosine transform (DCT-II) of a tile,
which continues it mirrored beyond its border, so that no edge wraps around.

Where tiles of a tissue are too much alike in how strong their texture is, empty background foremost, no
matrix helps. There a tile gets at each frequency the strength of the real tile that has its rank among real
ones: what is flat gets flatter, what is dirty dirtier, and the order stays as it was (quantile mapping, as
histogram matching does it with colours). `pathsynth.training.texture` finds matrices and quantiles.
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
_LEAST_AMPLITUDE: Final = 1e-4
_LARGEST_CHANGE: Final = 4.0


class Variety(BaseModel):
    """How the strength of texture varies within a tissue: quantiles of the logarithm of the amplitude at 1,
    2, 3 ... cycles a tile, from the least to the most in equal steps, of tiles that are `made` and of `real`
    ones, each (frequencies, quantiles).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    made: list[list[float]]
    real: list[list[float]]

    @model_validator(mode="after")
    def _of_one_shape(self) -> Self:
        made, real = np.array(self.made), np.array(self.real)
        if made.ndim != 2 or made.shape != real.shape or min(made.shape) < 2:
            raise ValueError("wants as many quantiles of real as of made tiles, at two frequencies or more")
        if (np.diff(made) < 0).any() or (np.diff(real) < 0).any():
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


def log_amplitudes(spectrum: torch.Tensor, count: int) -> FloatArray:
    """Logarithm of the root mean square (N, count) at each of `count` frequencies of coefficients
    (N, C, S, S).
    """
    power = spectrum.detach().double().square().mean(1).cpu().numpy()
    ring = rings(power.shape[-1], count)
    mean = np.stack([power[:, ring == i].mean(1) for i in range(count)], axis=1)
    amplitudes: FloatArray = np.log(np.sqrt(mean) + _LEAST_AMPLITUDE)
    return amplitudes


def vary(tiles: torch.Tensor, variety: Variety) -> torch.Tensor:
    """Float RGB tiles (N, 3, S, S) with the strength of real tiles of their rank at each frequency, at most
    four times or a quarter of what it is. Mean colours stay. Neighbouring frequencies change alike.
    """
    made, real = np.array(variety.made), np.array(variety.real)
    spectrum, count = cosine_transform(tiles), len(made)
    found = log_amplitudes(spectrum, count)
    changes = np.empty_like(found)
    for i in range(count):
        inside = found[:, i].clip(made[i, 0], made[i, -1])
        changes[:, i] = np.interp(inside, made[i], real[i]) - inside
    padded = np.pad(changes, ((0, 0), (1, 1)), mode="edge")
    smooth = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    gains = np.exp(smooth).clip(1 / _LARGEST_CHANGE, _LARGEST_CHANGE)
    with_mean = np.pad(gains, ((0, 0), (0, 1)), constant_values=1.0)  # where a ring of -1 points to
    ring = rings(tiles.shape[-1], count)
    return _inverse(spectrum * torch.from_numpy(with_mean[:, ring]).to(spectrum)[:, None])


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
        mixed = self.matrices[tissues]
        corrected = _inverse(torch.einsum("nhwij,njhw->nihw", mixed, cosine_transform(tiles)))
        for tissue, variety in self._varieties.items():
            own = torch.nonzero(tissues == tissue)[:, 0]
            if len(own):
                corrected = corrected.index_put((own,), vary(corrected[own], variety))
        return corrected
