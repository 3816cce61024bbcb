"""Training of the validator on PathMNIST train, watched on val."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from pathsynth.data import Split, load_split
from pathsynth.training.augment import dihedral, vary_stain
from pathsynth.training.engine import OptimConfig
from pathsynth.validator import build_validator, to_model_range


class ValidatorConfig(BaseModel):
    """Everything a validator run needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["validator"]
    optim: OptimConfig
    stain_strength: float = Field(default=0.2, ge=0, le=1)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)


def logits_of(model: nn.Module, tiles: np.ndarray, batch_size: int = 512) -> torch.Tensor:
    """Logits (N, 9) of uint8 RGB tiles (N, 28, 28, 3)."""
    with torch.inference_mode():
        return torch.cat(
            [model(to_model_range(tiles[i : i + batch_size])).float() for i in range(0, len(tiles), batch_size)]
        )


class ValidatorTask:
    """Cross-entropy on augmented training tiles."""

    def __init__(self, config: ValidatorConfig, train: Split | None = None, val: Split | None = None) -> None:
        torch.manual_seed(config.optim.seed)
        self.config = config
        self.train = train or load_split("train")
        self.val = val or load_split("val")
        self.model = build_validator()

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images (size, 3, 28, 28) in [-1, 1] and labels (size,)."""
        chosen = torch.randint(len(self.train), (size,), generator=generator).numpy()
        images = dihedral(to_model_range(self.train.images[chosen]), generator)
        images = vary_stain(images, generator, self.config.stain_strength)
        return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(self.train.labels[chosen])

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy with label smoothing."""
        images, labels = batch
        device = next(model.parameters()).device
        return F.cross_entropy(
            model(images.to(device)), labels.to(device), label_smoothing=self.config.label_smoothing
        )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy and loss on all of val."""
        logits, labels = logits_of(model, self.val.images), torch.from_numpy(self.val.labels)
        return {
            "val_accuracy": float((logits.argmax(1) == labels).float().mean()),
            "val_loss": float(F.cross_entropy(logits, labels)),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        """Half-precision weights as safetensors."""
        from safetensors.torch import save_model

        save_model(model.half(), str(folder / "validator.safetensors"))
        model.float()
