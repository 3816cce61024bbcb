"""Says of an image how little it is like a colorectal H&E tile of 28 px, beside what the validator sees.

The validator's features hold what tells nine tissues apart. A photograph, or tissue whose parts were moved
about, may well have such features: of 902 tiles with shuffled patches, their distance refused 2 %. So a small
network of its own looks for what is no tile. It learnt from training tiles against pictures that are none
(`pathsynth.training.outliers`), after Hendrycks et al., *Deep Anomaly Detection with Outlier Exposure*, 2019.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pathsynth.validator import Validator, half_precision, load_stored, symmetric_logits
from pathsynth.weights import Weights, loading

COMPONENT = "outliers"
_WIDTHS = (3, 32, 64, 128)
_LARGEST = 20.0  # of the exponent: a score beyond exp(20) would tell nothing more


class OutlierNetwork(nn.Module):
    """Float tiles (N, 3, 28, 28) in [-1, 1] to logits (N, 1) of being none; two convolutions at each of three
    resolutions, then the mean and the largest of each feature.
    """

    def __init__(self, widths: Sequence[int] = _WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise(widths):
            for inputs in (before, width):
                layers += [
                    nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        seen = self.features(tiles)
        logits: torch.Tensor = self.head(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], dim=1))
        return logits


class OutlierDetector:
    """A trained network, and the logits that are the median of real tiles and the limit of trust."""

    def __init__(self, model: nn.Module, median: float, limit: float) -> None:
        self.model = model.eval()
        self.median, self.limit = median, limit

    @classmethod
    def load(cls, folder: Path) -> "OutlierDetector":
        """Read a folder written by `save`.

        Raises:
            WeightsError: a file is missing, or holds something else.
        """
        with loading(folder):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            model = OutlierNetwork().to(memory_format=torch.channels_last)
            load_stored(model, load_file(folder / "model.safetensors"))
            return cls(model, float(config["median"]), float(config["limit"]))

    def save(self, folder: Path) -> None:
        """Write half-precision weights and the calibration, as `load` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(half_precision(self.model), folder / "model.safetensors")
        config = json.dumps({"median": self.median, "limit": self.limit}, indent=1)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")

    def scores(self, tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
        """How strange each uint8 RGB tile (N, 28, 28, 3) is (N,): 1 at the limit, 1/e at the median of real
        tiles, the same however a tile is turned or flipped.
        """
        logits = symmetric_logits(self.model, tiles)[:, 0]
        scores: torch.Tensor = ((logits - self.limit) / (self.limit - self.median)).clamp_max(_LARGEST).exp()
        return scores


def load_validator(weights: Weights) -> Validator:
    """The validator of a weights folder, with the detector of outliers where there is one.

    Raises:
        WeightsError: a part is missing or cannot be loaded.
    """
    strangeness = OutlierDetector.load(weights.path(COMPONENT)).scores if weights.has(COMPONENT) else None
    return Validator.load(weights.path("validator"), strangeness)
