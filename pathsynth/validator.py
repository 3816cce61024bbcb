"""The classifiers: the validator, which names the tissue of a tile with a calibrated confidence, and the
judge.

The validator is a ResNet-18 and decides inside the loop. The judge is a RegNet of other seed and disjoint
training data that the loop never asks; it exists to score what the loop let through.

Methods: He et al., *Deep Residual Learning*, 2016; Radosavovic et al., *Designing Network Design Spaces*,
2020; vector scaling after Guo et al., *On Calibration of Modern Neural Networks*, 2017; out-of-distribution
score after Lee et al., *A Simple Unified Framework for Detecting Out-of-Distribution Samples*, 2018.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import regnet_y_400mf, resnet18

from pathsynth.tissues import CODES, TISSUES
from pathsynth.verify import Prediction
from pathsynth.weights import loading

NATIVE_SIZE = 28
Architecture = Literal["resnet18", "regnet_y_400mf"]
Strangeness = Callable[[npt.NDArray[np.uint8]], torch.Tensor]


def build_classifier(architecture: Architecture) -> nn.Module:
    """A torchvision network for nine tissues with a 3 x 3 stem of stride 1, which 28-px tiles need.

    Input float (N, 3, 28, 28) in [-1, 1]; output logits (N, 9).
    """
    if architecture == "resnet18":
        model: nn.Module = resnet18(num_classes=len(TISSUES))
        model.set_submodule("conv1", nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False))
    else:
        model = regnet_y_400mf(num_classes=len(TISSUES))
        stem = nn.Conv2d(3, 32, kernel_size=3, stride=1, padding=1, bias=False)
        model.set_submodule("stem.0", stem)
    return model.to(memory_format=torch.channels_last)


def half_precision(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network as they are stored. Counters of batches, its only integers, are not."""
    state = model.state_dict()
    return {name: value.half().contiguous() for name, value in state.items() if value.is_floating_point()}


def load_stored(model: nn.Module, stored: dict[str, torch.Tensor]) -> None:
    """Load what `half_precision` gave. Raises RuntimeError when it is the state of another network."""
    counters = {name: value for name, value in model.state_dict().items() if not value.is_floating_point()}
    model.load_state_dict(counters | stored)


def to_model_range(tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 RGB tiles (N, H, W, 3) as float32 (N, 3, H, W) in [-1, 1], channels-last in memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2)
    return tensor.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)


def from_model_range(tiles: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Float tiles (N, 3, H, W) in [-1, 1] as uint8 RGB (N, H, W, 3), rounded and clipped."""
    scaled = tiles.detach().float().clamp(-1, 1).add(1.0).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def symmetric_logits(
    model: nn.Module, tiles: npt.NDArray[np.uint8], on_batch: Callable[[int, int], None] | None = None
) -> torch.Tensor:
    """Logits (N, 9) averaged over the eight symmetries of the square, since a tile has no up or down.

    The answer is therefore the same however a tile is turned or flipped. `on_batch` hears of (tiles done,
    tiles).
    """
    collected = []
    for start in range(0, len(tiles), 256):
        if on_batch is not None:
            on_batch(start, len(tiles))
        batch = to_model_range(tiles[start : start + 256])
        turned = [torch.rot90(batch, k, dims=(2, 3)) for k in range(4)]
        views = [view for each in turned for view in (each, each.flip(3))]
        with torch.inference_mode():
            logits = [model(view.contiguous(memory_format=torch.channels_last)).float() for view in views]
        collected.append(torch.stack(logits).mean(0))
    return torch.cat(collected) if collected else torch.empty(0, len(TISSUES))


def features_of(model: nn.Module, tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Penultimate features (N, F) of uint8 RGB tiles (N, 28, 28, 3)."""
    kept: list[torch.Tensor] = []
    hook = model.get_submodule("avgpool").register_forward_hook(
        lambda module, inputs, output: kept.append(output.flatten(1).float())
    )
    try:
        with torch.inference_mode():
            for start in range(0, len(tiles), 256):
                model(to_model_range(tiles[start : start + 256]))
    finally:
        hook.remove()
    return torch.cat(kept)


class Validator:
    """A trained classifier with its temperature and the statistics of its features.

    The out-of-distribution score is the smallest Mahalanobis distance of the penultimate features (F) to a
    class mean (9, F) under one shared covariance, divided by `ood_limit`; or what `strangeness` says of the
    tile, 1 being its limit, where that is more. `whitening` (F, F) turns that covariance into the identity.

    Threads may share it: one at a time is inside the network, batch by batch, since features are read by a
    hook.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        temperature: float,
        means: torch.Tensor,
        whitening: torch.Tensor,
        ood_limit: float,
        strangeness: Strangeness | None = None,
    ) -> None:
        self.model = model.eval()
        self.architecture = architecture
        self.temperature = temperature
        self.means, self.whitening, self.ood_limit = means, whitening, ood_limit
        self._strangeness = strangeness
        self._inside = threading.Lock()

    @classmethod
    def load(cls, folder: Path, strangeness: Strangeness | None = None) -> "Validator":
        """Read a folder written by `save`.

        Raises:
            WeightsError: a file is missing, or holds something else.
        """
        with loading(folder):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            tensors = {
                name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
            }
            means, whitening = tensors.pop("ood.means"), tensors.pop("ood.whitening")
            model = build_classifier(config["architecture"])
            load_stored(model, tensors)
            temperature, ood_limit = float(config["temperature"]), float(config["ood_limit"])
        return cls(model, config["architecture"], temperature, means, whitening, ood_limit, strangeness)

    def save(self, folder: Path) -> None:
        """Write half-precision weights and the calibration, as `load` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = half_precision(self.model)
        tensors["ood.means"], tensors["ood.whitening"] = self.means.contiguous(), self.whitening.contiguous()
        save_file(tensors, folder / "model.safetensors")
        config = {
            "architecture": self.architecture,
            "temperature": self.temperature,
            "ood_limit": self.ood_limit,
            "codes": CODES,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def distances(self, tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Mahalanobis distance (N,) of each tile's features to the nearest class mean."""
        with self._inside:
            features = features_of(self.model, tiles)
        centred = features.unsqueeze(1) - self.means
        nearest: torch.Tensor = (centred @ self.whitening).norm(dim=2).min(1).values
        return nearest

    def ood_scores(self, tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Out-of-distribution score (N,) of uint8 RGB tiles (N, 28, 28, 3); at or above 1 a tile is none."""
        scores = self.distances(tiles) / self.ood_limit
        return scores if self._strangeness is None else torch.maximum(scores, self._strangeness(tiles))

    def probabilities(
        self, tiles: npt.NDArray[np.uint8], on_batch: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """Calibrated probabilities (N, 9) of uint8 RGB tiles (N, 28, 28, 3)."""
        return self.logits(tiles, on_batch).softmax(1)

    def logits(
        self, tiles: npt.NDArray[np.uint8], on_batch: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """Calibrated logits (N, 9) of uint8 RGB tiles (N, 28, 28, 3)."""
        with self._inside:
            return symmetric_logits(self.model, tiles, on_batch) / self.temperature

    def predict(self, tiles: npt.NDArray[np.uint8]) -> list[Prediction]:
        """Name the tissue of each tile (N, 28, 28, 3) uint8."""
        scores = self.ood_scores(tiles).tolist()
        result = []
        for row, score in zip(self.probabilities(tiles).tolist(), scores, strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            probabilities = {code: round(p, 6) for code, p in zip(CODES, row, strict=True)}
            result.append(Prediction(CODES[best], round(row[best], 6), probabilities, round(score, 4)))
        return result
