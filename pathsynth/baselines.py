"""What colour alone achieves: classifiers that see no structure, for comparison with the network.

PathMNIST can be named to a good part by its stain; a network is worth what it adds to that.
"""

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import KNeighborsClassifier

from pathsynth.data import Split
from pathsynth.progress import Progress

FloatArray = npt.NDArray[np.float64]
BINS = 8
NEIGHBOURS = 50
TREES = 50
MEAN_RGB = "mean RGB, nearest neighbours"
COLOUR_HISTOGRAM = "colour histogram, extra trees"


def mean_rgb(tiles: npt.NDArray[np.uint8]) -> FloatArray:
    """Mean colour (N, 3) in grey levels of RGB tiles (N, H, W, 3)."""
    means: FloatArray = tiles.mean(axis=(1, 2), dtype=np.float64)
    return means


def colour_histogram(tiles: npt.NDArray[np.uint8], bins: int = BINS) -> FloatArray:
    """Share of the pixels of each tile (N, H, W, 3) in each of bins^3 cells of the RGB cube, (N, bins^3)."""
    cells = (tiles.reshape(len(tiles), -1, 3).astype(np.int64) * bins) >> 8
    flat = (cells[..., 0] * bins + cells[..., 1]) * bins + cells[..., 2]
    size = bins**3
    shifted = flat + size * np.arange(len(tiles))[:, np.newaxis]
    counts = np.bincount(shifted.ravel(), minlength=size * len(tiles)).reshape(len(tiles), size)
    shares: FloatArray = counts / flat.shape[1]
    return shares


def baseline_accuracies(
    train: Split, split: Split, seed: int = 0, progress: Progress | None = None
) -> dict[str, float]:
    """Accuracy on `split` of two classifiers fitted on all of `train`, by name.

    Mean colour with 50 nearest neighbours, and an 8 x 8 x 8 colour histogram with 50 extremely randomised
    trees (Geurts et al., 2006).
    """
    say = progress or (lambda done, total, message: None)
    say(0, 2, f"Baseline: {MEAN_RGB}")
    neighbours = KNeighborsClassifier(NEIGHBOURS).fit(mean_rgb(train.images), train.labels)
    of_mean = float(neighbours.score(mean_rgb(split.images), split.labels))
    say(1, 2, f"Baseline: {COLOUR_HISTOGRAM}")
    trees = ExtraTreesClassifier(TREES, random_state=seed).fit(colour_histogram(train.images), train.labels)
    of_histogram = float(trees.score(colour_histogram(split.images), split.labels))
    return {MEAN_RGB: of_mean, COLOUR_HISTOGRAM: of_histogram}
