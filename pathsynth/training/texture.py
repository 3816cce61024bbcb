"""Finds the matrices and the quantiles of `pathsynth.texture`, which give generated tiles the texture of real
ones.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from pathsynth.realism import radial_spectrum
from pathsynth.texture import Variety, correct, cosine_transform, log_strengths, rings
from pathsynth.validator import from_model_range, to_model_range

SMALLEST_GAIN: Final = 0.4
LARGEST_GAIN: Final = 2.2
_SMALLEST_OF_COLOUR: Final = 0.3
_LARGEST_OF_COLOUR: Final = 1.7
_LEAST_POWER: Final = 1e-9
_ROUNDS: Final = 3
_QUANTILES: Final = 21
Tiles = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]


def fit_texture(generated: Tiles, real: Tiles, strength: float = 1.0) -> list[list[list[float]]] | None:
    """Matrices (3 x 3 each) for 1 to S / 2 cycles a tile that give generated RGB tiles (N, S, S, 3) the mean
    power of real ones (M, S, S, 3), and their covariance of colours, at each frequency.

    Of all matrices that do so, those that change a tile least: the optimal transport between two Gaussians
    (Olkin and Pukelsheim, *The distance between two random vectors with given dispersion matrices*, 1982).
    What the power under a window, as `radial_spectrum` has it, still differs by then scales them. Of the
    change they make, the share `strength` is kept.

    None where the amplitude at a frequency would have to change to below 0.4 or above 2.2 times what it is:
    such tiles differ from real ones in more than a gain can mend, and it would do harm.
    """
    found, wanted = covariances(generated), covariances(real)
    amplitude = np.sqrt(np.trace(wanted, axis1=1, axis2=2) / np.trace(found, axis1=1, axis2=2))
    amplitude = 1 + strength * (amplitude - 1)
    if amplitude.min() < SMALLEST_GAIN or amplitude.max() > LARGEST_GAIN:
        return None
    matrices = np.stack([_transport(one, other) for one, other in zip(found, wanted, strict=True)])
    floats, power = to_model_range(generated), radial_spectrum(real)
    for _ in range(_ROUNDS):  # neighbouring frequencies mix, and values are clipped
        matrices = _smooth(matrices)
        left = power / radial_spectrum(from_model_range(correct(floats, matrices.tolist())))
        matrices = matrices * np.sqrt(left)[:, np.newaxis, np.newaxis]
    partly = np.eye(3) + strength * (_smooth(matrices) - np.eye(3))
    result: list[list[list[float]]] = partly.round(4).tolist()
    return result


def fit_variety(generated: Tiles, real: Tiles) -> Variety:
    """Quantiles of the strengths of generated RGB tiles (N, S, S, 3), as they are before any matrices, beside
    those of real ones (M, S, S, 3).
    """
    shares = np.linspace(0, 1, _QUANTILES)

    def quantiles(tiles: Tiles) -> list[float]:
        found: list[float] = np.quantile(log_strengths(to_model_range(tiles)), shares).round(4).tolist()
        return found

    return Variety(made=quantiles(generated), real=quantiles(real))


def _smooth(matrices: FloatArray) -> FloatArray:
    """Matrices (N, 3, 3) averaged with their neighbours."""
    padded = np.pad(matrices, ((1, 1), (0, 0), (0, 0)), mode="edge")
    smooth: FloatArray = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return smooth


def covariances(tiles: Tiles) -> FloatArray:
    """Mean products (S / 2, 3, 3) of the colours of RGB tiles (N, S, S, 3) at 1 to S / 2 cycles a tile, what
    is beyond with the last, a little of every colour added.
    """
    count = tiles.shape[1] // 2
    spectrum = cosine_transform(to_model_range(tiles)).double().numpy()
    ring = rings(tiles.shape[1], count)
    result = []
    for i in range(count):
        values = spectrum[:, :, ring == i]
        result.append(np.einsum("nik,njk->ij", values, values) / (values.shape[0] * values.shape[2]))
    return np.stack(result) + _LEAST_POWER * np.eye(3)


def _transport(found: FloatArray, wanted: FloatArray) -> FloatArray:
    """The symmetric matrix (3, 3) that takes the covariance `found` to `wanted`, its gains within limits."""
    root = _root(found)
    inverse = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(inverse @ _root(root @ wanted @ root) @ inverse)
    limited: FloatArray = (vectors * values.clip(_SMALLEST_OF_COLOUR, _LARGEST_OF_COLOUR)) @ vectors.T
    return limited


def _root(matrix: FloatArray) -> FloatArray:
    """The positive square root of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root: FloatArray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root
