"""Turns tiles, which have no upper side, so that those of a tissue do not all run one way.

A network that only now and then is told a direction has one that it prefers, and gives it to most tiles of a
tissue. A square can be turned and mirrored in eight ways that move pixels and change none.
"""

import numpy as np
import numpy.typing as npt

from pathsynth.attributes import phrases

_STREAM = 1  # apart from what else a seed draws


def symmetries(tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The eight symmetries (8, S, S, C) of a square tile (S, S, C), itself first."""
    turned = [np.rot90(tile, quarters) for quarters in range(4)]
    return np.stack(turned + [np.fliplr(each) for each in turned])


def turned(tile: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    """The symmetry of an RGB tile (S, S, 3) that a seed draws among those for whose direction
    `pathsynth.attributes` has the same words: a tile that rises still rises, one without direction is free.
    """
    every = symmetries(tile)
    words = [each[-1] for each in phrases(every)]
    alike = [i for i, word in enumerate(words) if word == words[0]]
    result: npt.NDArray[np.uint8] = every[np.random.default_rng((seed, _STREAM)).choice(alike)]
    return result
