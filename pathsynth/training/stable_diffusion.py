"""Training of LoRA adapters on a Stable Diffusion checkpoint: noise prediction in the latent space.

Autoencoder, text encoder and network are frozen; the adapter (Hu et al., *LoRA*, 2022) learns the nine
tissues from their prompts. The loss is that of Ho et al., *Denoising Diffusion Probabilistic Models*, 2020,
with the checkpoint's own noise schedule, or of the velocity (Salimans and Ho, *Progressive Distillation*,
2022) where the checkpoint predicts that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from pathsynth.data import Split, TileSize, load_split
from pathsynth.errors import TrainingError
from pathsynth.images import NATIVE_EDGE, upscale
from pathsynth.layout import LORA_FILE
from pathsynth.stable_diffusion import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    SETTINGS_FILE,
    LoraSettings,
    PromptStyle,
    encode,
    prompt_of,
)
from pathsynth.tissues import TISSUES
from pathsynth.training.augment import dihedral
from pathsynth.training.engine import OptimConfig
from pathsynth.validator import to_model_range


class StableDiffusionConfig(BaseModel):
    """A LoRA run on a Stable Diffusion checkpoint.

    `tile_size` is the edge in px of the PathMNIST tiles that are read, `resolution` that to which they are
    enlarged; `steps` and `guidance` are stored with the adapter for generating.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lora-stable-diffusion"]
    optim: OptimConfig
    resolution: int = Field(ge=NATIVE_EDGE)
    tile_size: TileSize = 28
    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    target_modules: list[str] = Field(min_length=1)
    prompt_style: PromptStyle = "domain"
    drop_text: float = Field(default=0.1, ge=0, le=1, description="Share of images trained without text.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for more time.")
    validation_tiles: int = Field(default=72, gt=0)
    steps: int = Field(default=DEFAULT_STEPS, gt=0)
    guidance: float = Field(default=DEFAULT_GUIDANCE, ge=1)


@dataclass(frozen=True)
class PictureBatch:
    """Pictures (N, 3, R, R) in [-1, 1], and for each the index of its tissue, or len(TISSUES) for no text."""

    pictures: torch.Tensor
    texts: torch.Tensor


class StableDiffusionTask:
    """The adapter on a frozen checkpoint, whose frozen weights have the precision they were loaded in.

    Raises:
        TrainingError: resolution, target modules or noise schedule do not fit the checkpoint.
    """

    def __init__(
        self,
        config: StableDiffusionConfig,
        pipeline: StableDiffusionPipeline,
        base: str,
        train: Split | None = None,
        val: Split | None = None,
    ) -> None:
        torch.manual_seed(config.optim.seed)
        factor = int(pipeline.vae_scale_factor)
        if config.resolution % factor:
            raise TrainingError(
                f"A resolution of {config.resolution} px does not fit {base}; give a multiple of {factor}."
            )
        self.config, self.base, self.pipeline = config, base, pipeline
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._predicts = str(self.noise.config.prediction_type)
        if self._predicts not in ("epsilon", "v_prediction"):
            raise TrainingError(
                f"{base} predicts {self._predicts}; give a checkpoint that predicts epsilon or v_prediction."
            )
        pipeline.vae.requires_grad_(False)
        pipeline.text_encoder.requires_grad_(False)
        self.model: nn.Module = _with_adapter(config, pipeline, base)
        self.train = train or load_split("train", config.tile_size)
        self.val = val or load_split("val", config.tile_size)
        # Nine prompts and the empty text are all that is ever said: the text encoder is not needed again.
        texts = [prompt_of(tissue, config.prompt_style) for tissue in TISSUES]
        self._contexts = encode(pipeline, [*texts, ""]).states

    def batch(self, size: int, generator: torch.Generator) -> PictureBatch:
        """Enlarged tiles, each under a random symmetry of the square, some of them without their text."""
        chosen = torch.randint(len(self.train), (size,), generator=generator).numpy()
        return self._batch_of(self.train, chosen, generator)

    def _batch_of(
        self, split: Split, chosen: npt.NDArray[np.int64], generator: torch.Generator
    ) -> PictureBatch:
        turned = dihedral(torch.from_numpy(split.images[chosen]).permute(0, 3, 1, 2), generator)
        tiles = np.ascontiguousarray(turned.permute(0, 2, 3, 1).numpy())
        pictures = np.stack([upscale(tile, self.config.resolution) for tile in tiles])
        texts = torch.from_numpy(split.labels[chosen])
        dropped = torch.rand(len(texts), generator=generator) < self.config.drop_text
        return PictureBatch(to_model_range(pictures), texts.masked_fill(dropped, len(TISSUES)))

    def loss(self, model: nn.Module, batch: PictureBatch, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of the predicted noise, or velocity, at uniformly drawn time steps."""
        device = next(model.parameters()).device
        latents = self._latents(batch.pictures, device, generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        last = int(self.noise.config.num_train_timesteps)
        times = torch.randint(last, (len(latents),), generator=generator).to(device)
        noisy = self.noise.add_noise(latents, noise, times)
        context = self._contexts.to(device)[batch.texts.to(device)]
        predicted = model(noisy, times, encoder_hidden_states=context, return_dict=False)[0]
        is_velocity = self._predicts == "v_prediction"
        target = self.noise.get_velocity(latents, noise, times) if is_velocity else noise
        return F.mse_loss(predicted.float(), target.float())

    @torch.no_grad()
    def _latents(
        self, pictures: torch.Tensor, device: torch.device, generator: torch.Generator
    ) -> torch.Tensor:
        vae = self.pipeline.vae.to(device)
        posterior = vae.encode(pictures.to(device, vae.dtype)).latent_dist
        latents: torch.Tensor = posterior.sample(generator) * vae.config.scaling_factor
        return latents.to(vae.dtype)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss on `validation_tiles` tiles spread over val, with fixed symmetries, times and noise."""
        generator = torch.Generator().manual_seed(1)
        count = min(self.config.validation_tiles, len(self.val))
        chosen = np.linspace(0, len(self.val) - 1, count, dtype=np.int64)
        total = 0.0
        with torch.inference_mode():
            for start in range(0, count, self.config.optim.batch_size):
                some = chosen[start : start + self.config.optim.batch_size]
                batch = self._batch_of(self.val, some, generator)
                total += len(some) * float(self.loss(model, batch, generator))
        return {"val_loss": total / count}

    def save(self, model: nn.Module, folder: Path) -> None:
        """The averaged adapter in half precision, as `StableDiffusionPipeline.load_lora_weights` reads it,
        with the settings to generate by.
        """
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        StableDiffusionPipeline.save_lora_weights(
            folder / "lora",
            unet_lora_layers={name: layer.half().contiguous() for name, layer in layers.items()},
            unet_lora_adapter_metadata=self.pipeline.unet.peft_config["default"].to_dict(),
            weight_name=LORA_FILE,
        )
        settings = LoraSettings(
            base=self.base,
            resolution=self.config.resolution,
            prompt_style=self.config.prompt_style,
            steps=self.config.steps,
            guidance=self.config.guidance,
        )
        path = folder / "lora" / SETTINGS_FILE
        path.write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _with_adapter(config: StableDiffusionConfig, pipeline: StableDiffusionPipeline, base: str) -> nn.Module:
    """The frozen network with a new adapter, whose weights are float32."""
    unet: nn.Module = pipeline.unet.requires_grad_(False)
    try:
        pipeline.unet.add_adapter(
            PeftLoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                target_modules=config.target_modules,
                init_lora_weights="gaussian",
            )
        )
    except ValueError as error:
        names = ", ".join(config.target_modules)
        raise TrainingError(
            f"A LoRA adapter cannot be put on {names} in {base}; give `target_modules` that its network has."
        ) from error
    cast_training_params(unet, torch.float32)
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    return unet
