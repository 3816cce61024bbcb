"""Last stage of the diffusion over detail channels: few steps, against a rival.

Flow matching leaves a network of this size with detail that is the mean of many possible ones, and its tiles
soft or full of lines. Here the trained diffusion learns to go from each of a few times straight to detail
that a rival cannot tell from that of a real tile with the same thumbnail, as adapters of the layout model do
(`pathsynth.training.adversarial`).

Everything is done on detail channels, without decoding. What the rival sees of them beside the channels are
features of the diffusion as it was before, which is frozen, after Sauer et al., *Fast High-Resolution Image
Synthesis with Latent Adversarial Diffusion Distillation*, 2024. No network of the evaluation has a part in
it.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from pathsynth.detail import DetailPipeline
from pathsynth.layout import TIME_SCALE, pooled_text
from pathsynth.text import TextContext, TextEncoder
from pathsynth.training.detail import (
    VALIDATION_BATCH,
    VALIDATION_TILES,
    CropConfig,
    DetailBatch,
    DetailSampling,
    detail_maker,
)
from pathsynth.training.engine import OptimConfig
from pathsynth.training.few_steps import FewSteps
from pathsynth.training.hires import HiresTiles
from pathsynth.training.layout_config import FlowConfig
from pathsynth.training.perceptual import Contest, Shown, SpectrumDistance
from pathsynth.training.rivals import TileRival
from pathsynth.validator import Validator, to_model_range

_NOISE_OF_FEATURES = (0.02, 0.4)


class AdversarialDetailConfig(BaseModel):
    """A run that goes on from a trained detail pipeline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["detail-adversarial"]
    pipeline: Path = Field(
        description="Folder of a saved detail pipeline, seen from the folder that holds that of the run."
    )
    optim: OptimConfig
    crops: CropConfig = CropConfig(grey_share=0.0)
    flow: FlowConfig = FlowConfig(drop_text=0.0)
    prompts: float = Field(default=0.5, ge=0, le=1, description="As when the diffusion was trained.")
    steps: int = Field(default=4, gt=0, description="Denoising steps to train for.")
    first_step: float = Field(
        default=0.4, gt=0, lt=1, description="Share of tiles made from pure noise; the others share the rest."
    )
    on_policy: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the tiles of later steps that start from what the steps before make.",
    )
    weight: float = Field(default=1.0, gt=0, description="Weight of what the rival says.")
    reconstruction: float = Field(
        default=1.0, ge=0, description="Weight of the squared distance from the detail that was noised."
    )
    anchor: float = Field(
        default=0.0,
        ge=0,
        description="Least share of that weight, which otherwise falls to zero where nothing but noise is "
        "left: keeps detail away from where the thumbnail leaves none.",
    )
    rival_width: int = Field(default=64, gt=0)
    rival_from: int = Field(default=0, ge=0, description="Step from which on the rival counts.")


class DiffusionFeatures(nn.Module):
    """The way down of a frozen copy of a detail diffusion: features at each of its levels and its middle."""

    def __init__(self, pipeline: DetailPipeline) -> None:
        super().__init__()
        self.unet = type(pipeline.unet).from_config(pipeline.unet.config)
        self.unet.load_state_dict(pipeline.unet.state_dict())
        self.unet.set_attn_processor(pipeline.unet.attn_processors)
        self.unet.up_blocks = nn.ModuleList()
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        widths = list(pipeline.unet.config.block_out_channels)
        self.widths = [*widths, widths[-1]]

    def forward(
        self, noisy: torch.Tensor, thumbnails: torch.Tensor, time: torch.Tensor, context: TextContext
    ) -> list[torch.Tensor]:
        """Features of noisy detail (N, k, s, s) at times (N,) in [0, 1000]."""
        unet = self.unet
        seen: list[torch.Tensor] = []
        inputs = torch.cat([noisy, thumbnails.to(noisy.dtype)], dim=1)
        embedding = unet.time_embedding(unet.get_time_embed(inputs, time))
        embedding = embedding + unet.get_class_embed(inputs, pooled_text(context))
        text = {
            "encoder_hidden_states": context.states,
            "encoder_attention_mask": (1 - context.mask.to(inputs.dtype)).mul(-10000.0).unsqueeze(1),
        }
        hidden = unet.conv_in(inputs.contiguous(memory_format=torch.channels_last))
        for block in unet.down_blocks:
            attends = getattr(block, "has_cross_attention", False)
            hidden, levels = block(hidden, embedding, **(text if attends else {}))
            # The last of a level is the smaller entry to the next one, where there is a next.
            seen.append(levels[-2] if len(seen) < len(unet.down_blocks) - 1 else levels[-1])
        seen.append(unet.mid_block(hidden, embedding, **text))
        return seen


class AdversarialDetailTask(DetailSampling):
    """The diffusion against a rival, which the engine trains with its own optimiser."""

    rival: nn.Module

    def __init__(
        self,
        config: AdversarialDetailConfig,
        pipeline: DetailPipeline,
        validator: Validator,
        tiles: HiresTiles | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        torch.manual_seed(config.optim.seed)
        self.config = config
        super().__init__(
            config.crops,
            config.flow,
            config.prompts,
            pipeline,
            tiles or HiresTiles(),
            encoder,
            validator,
        )
        pipeline.unet.requires_grad_(True)
        pipeline.sample_stochastically()
        pipeline.register_to_config(steps=config.steps, guidance=1.0)
        self._features = DiffusionFeatures(pipeline)
        channels = 3 + int(pipeline.autoencoder.config.detail_channels)
        rival = TileRival(config.rival_width, self._features.widths, channels)
        self.rival = rival.to(memory_format=torch.channels_last)
        self._spectrum = SpectrumDistance()
        self._steps = FewSteps(config.steps, config.first_step, config.on_policy)
        self._contest = Contest(self.rival, config.rival_from)

    def loss(self, model: nn.Module, batch: DetailBatch, generator: torch.Generator) -> torch.Tensor:
        """What the rival says of the detail that is made, and its distance from that which was noised."""
        config = self.config
        device = next(model.parameters()).device
        thumbnails, data = self._encoded(batch, device)
        context = TextContext(batch.context.states.to(device), batch.context.mask.to(device))
        make = detail_maker(model, thumbnails, context)
        given = self._steps.noise(data, make, generator)
        made = make(given.noisy, given.time, torch.ones_like(given.own))
        squared = (made - data).square().mean((1, 2, 3))
        total: torch.Tensor = config.reconstruction * (given.left.clamp_min(config.anchor) * squared).mean()
        text, tissues = pooled_text(context), self._tissues(thumbnails)
        at = torch.empty(len(data)).uniform_(*_NOISE_OF_FEATURES, generator=generator).to(device)
        noise = torch.randn(data.shape, generator=generator).to(device)
        shown = self._show(made, thumbnails, at, noise, context)
        total = total - config.weight * self._contest.opinion(shown, text, tissues)
        with torch.no_grad():
            self._contest.keep(self._show(data, thumbnails, at, noise, context), shown, text, tissues)
        return total

    def _tissues(self, thumbnails: torch.Tensor) -> torch.Tensor:
        """Tissues (N,) that the validator sees in one view of each thumbnail."""
        assert self._validator is not None
        with torch.no_grad():
            tissues: torch.Tensor = self._validator.model.to(thumbnails.device)(thumbnails).argmax(1)
        return tissues

    def _show(
        self,
        detail: torch.Tensor,
        thumbnails: torch.Tensor,
        time: torch.Tensor,
        noise: torch.Tensor,
        context: TextContext,
    ) -> Shown:
        level = time.view(-1, 1, 1, 1)
        noisy = (1 - level) * detail + level * noise
        features = self._features.to(detail.device)(noisy, thumbnails, time * TIME_SCALE, context)
        channels = torch.cat([thumbnails, detail], dim=1)
        return Shown(channels.contiguous(memory_format=torch.channels_last), features)

    def rival_loss(self, rival: nn.Module, batch: DetailBatch) -> torch.Tensor:
        """Hinge loss of the rival on the detail that `loss` has just made and on that of the real tiles."""
        return self._contest.rival_loss(rival)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Distance of spectra of decoded tiles from the centres of held-out ones, and deviation of the detail
        in units of theirs, which is 1 where as much varies.
        """
        generator = torch.Generator().manual_seed(1)
        edge = self.config.crops.edge
        tiles = self.train.held_colour.fitting(edge).centres(edge, VALIDATION_TILES)
        distances, deviations = [], []
        with torch.inference_mode():
            for start in range(0, len(tiles), VALIDATION_BATCH):
                real = to_model_range(tiles[start : start + VALIDATION_BATCH])
                batch = self._batch_of(real, generator)
                thumbnails, data = self._encoded(batch, real.device)
                make = detail_maker(model, thumbnails, batch.context)
                made = self._steps.sample(data, make, generator)
                decoded = self.pipeline.autoencoder.decode(thumbnails, self.pipeline.restore(made))
                distances.append(float(self._spectrum(decoded.clamp(-1, 1), real)))
                deviations.append(float(made.std() / data.std()))
        return {"val_spectrum": float(np.mean(distances)), "val_deviation": float(np.mean(deviations))}
