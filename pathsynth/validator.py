"""The validator: a ResNet-18 that names the tissue of a tile with a calibrated confidence.

Method: He et al., *Deep Residual Learning*, 2016, with the stem suited to 28 px; temperature scaling after Guo et al., *On
Calibration of Modern Neural Networks*, 2017; out-of-distribution score after Lee et al., *A Simple Unified Framework for
Detecting Out-of-Distribution Samples*, 2018.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import resnet18

from pathsynth.tissues import CODES, TISSUES

NATIVE_SIZE = 28
SYMMETRIES = 8
_FEATURES = 512


def build_validator() -> nn.Module:
    """A torchvision ResNet-18 for nine tissues with a 3 x 3 stem of stride 1, which 28-px tiles need.

    Input float (N, 3, 28, 28) in [-1, 1]; output logits (N, 9).
    """
    model = resnet18(num_classes=len(TISSUES))
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    return model.to(memory_format=torch.channels_last)


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

    The answer is therefore the same however a tile is turned or flipped. `on_batch` hears of (tiles done, tiles).
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


@dataclass(frozen=True)
class Prediction:
    """What the validator says of one tile."""

    code: str
    confidence: float
    probabilities: dict[str, float]
    ood_score: float

    @property
    def in_distribution(self) -> bool:
        """Whether the tile lies where the training tiles lie."""
        return self.ood_score < 1


class Validator:
    """A trained ResNet-18 with its temperature and the statistics of its features.

    The out-of-distribution score is the smallest Mahalanobis distance of the penultimate features (512) to a class mean under
    one shared covariance, divided by the distance that `in_distribution_share` of the val tiles stay below.
    """

    def __init__(self, model: nn.Module, temperature: float, means: torch.Tensor, whitening: torch.Tensor, limit: float):
        self.model = model.eval()
        self.temperature = temperature
        self.means, self.whitening, self.limit = means, whitening, limit
        self._features = torch.empty(0, _FEATURES)
        model.get_submodule("avgpool").register_forward_hook(self._keep_features)

    def _keep_features(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._features = output.flatten(1).float()

    @classmethod
    def load(cls, folder: Path) -> "Validator":
        """Read a folder written by `save`."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        means, whitening = tensors.pop("ood.means"), tensors.pop("ood.whitening")
        model = build_validator()
        model.load_state_dict({name: tensor for name, tensor in tensors.items()}, strict=False)
        return cls(model, config["temperature"], means, whitening, config["ood_limit"])

    def save(self, folder: Path) -> None:
        """Write half-precision weights and the calibration, as `load` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.half().contiguous()
            for name, tensor in self.model.state_dict().items()
            if tensor.is_floating_point()
        }
        tensors["ood.means"], tensors["ood.whitening"] = self.means.contiguous(), self.whitening.contiguous()
        save_file(tensors, folder / "model.safetensors")
        config = {"architecture": "resnet18", "temperature": self.temperature, "ood_limit": self.limit, "codes": CODES}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def distances(self, tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Mahalanobis distance (N,) of each tile's features to the nearest class mean."""
        collected = []
        for start in range(0, len(tiles), 256):
            with torch.inference_mode():
                self.model(to_model_range(tiles[start : start + 256]))
            centred = self._features.unsqueeze(1) - self.means
            collected.append((centred @ self.whitening).norm(dim=2).min(1).values)
        return torch.cat(collected)

    def probabilities(
        self, tiles: npt.NDArray[np.uint8], on_batch: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """Calibrated probabilities (N, 9) of uint8 RGB tiles (N, 28, 28, 3)."""
        return (symmetric_logits(self.model, tiles, on_batch) / self.temperature).softmax(1)

    def predict(self, tiles: npt.NDArray[np.uint8]) -> list[Prediction]:
        """Name the tissue of each tile (N, 28, 28, 3) uint8."""
        scores = (self.distances(tiles) / self.limit).tolist()
        result = []
        for row, score in zip(self.probabilities(tiles).tolist(), scores, strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            probabilities = {code: round(p, 6) for code, p in zip(CODES, row, strict=True)}
            result.append(Prediction(CODES[best], round(row[best], 6), probabilities, round(score, 4)))
        return result
