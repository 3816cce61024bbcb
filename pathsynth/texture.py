"""The texture of generated tiles, given the strength and the colours of that of real ones of the tissue.

A generator gives some tissues too much fine texture and others too little, in all of their tiles alike, and
not quite in their colours. A 3 x 3 matrix for each frequency, the same for every tile of a tissue, corrects
the mean power and how the colours go together. It is applied to the cosine transform (DCT-II) of a tile,
which continues it mirrored beyond its border, so that no edge wraps around. `pathsynth.training.texture`
finds the matrices.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dct
from torch import nn

Matrix = Sequence[Sequence[float]]


@lru_cache
def _transform(edge: int) -> torch.Tensor:
    """The matrix (edge, edge) of the orthonormal DCT-II."""
    return torch.from_numpy(dct(np.eye(edge), axis=0, norm="ortho")).float()


def cosine_transform(tiles: torch.Tensor) -> torch.Tensor:
    """Coefficients (N, C, S, S) of float tiles (N, C, S, S)."""
    matrix = _transform(tiles.shape[-1])
    return matrix @ tiles @ matrix.T


def cycles(edge: int) -> npt.NDArray[np.float64]:
    """Radial frequency, in cycles a tile, of each coefficient (edge, edge); 0 of the mean."""
    along = np.arange(edge) / 2
    frequency: npt.NDArray[np.float64] = np.hypot(along[:, np.newaxis], along)
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
    edge = tiles.shape[-1]
    spectrum = torch.einsum("hwij,njhw->nihw", between(matrices, edge), cosine_transform(tiles))
    matrix = _transform(edge)
    return matrix.T @ spectrum @ matrix


class TextureCorrection(nn.Module):
    """Corrects tiles of several tissues at once, on the device it is moved to; gradients pass.

    `matrices` are those of `correct` for each tissue in turn, None where tiles stay as they are.
    """

    matrices: torch.Tensor
    transform: torch.Tensor

    def __init__(self, matrices: Sequence[Sequence[Matrix] | None], edge: int) -> None:
        super().__init__()
        unchanged = [np.eye(3).tolist()]
        self.register_buffer("matrices", torch.stack([between(each or unchanged, edge) for each in matrices]))
        self.register_buffer("transform", _transform(edge))

    def forward(self, tiles: torch.Tensor, tissues: torch.Tensor) -> torch.Tensor:
        """Float RGB tiles (N, 3, S, S) of tissues (N,), corrected."""
        spectrum = self.transform @ tiles @ self.transform.T
        changed = torch.einsum("nhwij,njhw->nihw", self.matrices[tissues], spectrum)
        return self.transform.T @ changed @ self.transform
