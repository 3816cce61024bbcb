"""Training and calibration of the validator and the judge on PathMNIST train, watched on val."""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from pathsynth.calibration import vector_scaling
from pathsynth.data import Split, load_split
from pathsynth.progress import Progress
from pathsynth.tissues import TISSUES
from pathsynth.training.augment import dihedral, disturb, vary_stain
from pathsynth.training.engine import OptimConfig
from pathsynth.validator import (
    Architecture,
    Validator,
    build_classifier,
    features_of,
    symmetric_logits,
    to_model_range,
)

_BATCH = 512
_LEAST_LOSS = 0.005
_MOST_LOSS = 3.0


class ValidatorConfig(BaseModel):
    """Everything a run needs. Validator and judge each see their own half of train when `half` says which."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["validator", "judge"]
    architecture: Architecture
    half: Literal["even", "odd"] | None = None
    initial: Path | None = Field(
        default=None,
        description="Folder of a saved classifier to start from, seen from the folder that holds that of the "
        "run.",
    )
    optim: OptimConfig
    stain_strength: float = Field(default=0.2, ge=0, le=1)
    disturbed: float = Field(
        default=0.0, ge=0, le=1, description="Share of tiles under JPEG, blur, other hue or brightness."
    )
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    focus: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of each batch that is drawn in proportion to the loss of the tiles, as last seen.",
    )


def plain_logits(
    model: nn.Module, tiles: npt.NDArray[np.uint8], progress: Progress | None = None
) -> torch.Tensor:
    """Logits (N, 9) of uint8 RGB tiles (N, 28, 28, 3) as they are, for the log."""
    logits = []
    with torch.inference_mode():
        for first in range(0, len(tiles), _BATCH):
            if progress is not None:
                progress(first, len(tiles), "Naming tiles")
            logits.append(model(to_model_range(tiles[first : first + _BATCH])).float())
    return torch.cat(logits)


def calibrate(model: nn.Module, architecture: Architecture, train: Split, val: Split) -> Validator:
    """Vector scaling from val, feature statistics from 9,000 training tiles, out-of-distribution limit from
    val.

    The last layer of `model` takes the scaling in, but for the mean of the factors, the temperature.

    The limit leaves 0.5 % of val outside: real tiles are rarely refused.
    """
    model.eval()
    logits, named = symmetric_logits(model, val.images).clone(), torch.from_numpy(val.labels)
    temperature = _take_in(model.get_submodule("fc"), *vector_scaling(logits, named))
    chosen = np.linspace(0, len(train) - 1, min(9000, len(train)), dtype=np.int64)
    features, labels = (
        features_of(model, train.images[chosen]).clone(),
        torch.from_numpy(train.labels[chosen]),
    )
    means = torch.stack([features[labels == tissue.index].mean(0) for tissue in TISSUES])
    covariance = torch.cov((features - means[labels]).T)
    ridge = 0.05 * covariance.diagonal().mean() * torch.eye(len(covariance))
    values, vectors = torch.linalg.eigh(covariance + ridge)
    whitening = vectors @ torch.diag(values.rsqrt())
    validator = Validator(model, architecture, temperature, means, whitening, 1.0)
    validator.ood_limit = float(validator.distances(val.images).quantile(0.995))
    return validator


def _take_in(last: nn.Module, factors: torch.Tensor, offsets: torch.Tensor) -> float:
    """Scale the logits of a linear layer; returns the temperature to divide them by, so that they keep their
    size: one over the geometric mean of the factors.
    """
    temperature = float(factors.log().mean().neg().exp())
    weight, bias = last.get_parameter("weight"), last.get_parameter("bias")
    with torch.no_grad():
        weight.mul_((factors * temperature).unsqueeze(1))
        bias.mul_(factors * temperature).add_(offsets * temperature)
    return temperature


class ValidatorTask:
    """Cross-entropy on augmented training tiles.

    With a `focus`, part of each batch is drawn by the loss of each tile when it was last seen, after Jiang et
    al., *Accelerating Deep Learning by Focusing on the Biggest Losers*, 2019. That overrates tiles between
    two tissues, so the last part of a run is better without.
    """

    def __init__(
        self,
        config: ValidatorConfig,
        train: Split | None = None,
        val: Split | None = None,
        progress: Progress | None = None,
    ) -> None:
        torch.manual_seed(config.optim.seed)
        self.config = config
        self.train = _half(train or load_split("train"), config.half)
        self.val = val or load_split("val")
        if config.initial is None:
            self.model = build_classifier(config.architecture)
        else:
            self.model = Validator.load(config.initial).model
        self._losses: torch.Tensor | None = None
        if config.focus:
            logits = plain_logits(self.model.eval(), self.train.images, progress)
            self._losses = F.cross_entropy(logits, torch.from_numpy(self.train.labels), reduction="none")

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Augmented images (size, 3, 28, 28) in [-1, 1], labels (size,), and where in train they are
        (size,).
        """
        chosen = torch.randint(len(self.train), (size,), generator=generator)
        if self._losses is not None and (focused := round(self.config.focus * size)):
            weights = self._losses.clamp(_LEAST_LOSS, _MOST_LOSS)
            chosen[:focused] = torch.multinomial(weights, focused, replacement=True, generator=generator)
        tiles = disturb(self.train.images[chosen.numpy()], generator, self.config.disturbed)
        images = dihedral(to_model_range(tiles), generator)
        images = vary_stain(images, generator, self.config.stain_strength)
        labels = torch.from_numpy(self.train.labels[chosen.numpy()])
        return images.contiguous(memory_format=torch.channels_last), labels, chosen

    def loss(
        self,
        model: nn.Module,
        batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Cross-entropy with label smoothing."""
        images, labels, chosen = batch
        device = next(model.parameters()).device
        each = F.cross_entropy(
            model(images.to(device)),
            labels.to(device),
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )
        if self._losses is not None:
            self._losses[chosen] = each.detach().float().cpu()
        return each.mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy and loss on all of val."""
        logits, labels = plain_logits(model, self.val.images), torch.from_numpy(self.val.labels)
        return {
            "val_accuracy": float((logits.argmax(1) == labels).float().mean()),
            "val_loss": float(F.cross_entropy(logits, labels)),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        """Calibrate, and write the classifier as it ships."""
        calibrate(model, self.config.architecture, self.train, self.val).save(folder / self.config.kind)


def _half(split: Split, half: Literal["even", "odd"] | None) -> Split:
    if half is None:
        return split
    start = 0 if half == "even" else 1
    return Split(split.name, split.images[start::2], split.labels[start::2])
