"""The detail model: from a 28-px layout tile to 224 px at 0.5 um a pixel, without touching what was verified.

A real 224-px tile resized with Pillow's BILINEAR to 28 px is the PathMNIST tile, so the layout tile is taken
as exact low frequencies and only detail is made:

1. `DetailAutoencoder`: latent at 28 x 28 of [thumbnail | detail channels]. The thumbnail is no output of a
   network but the resizing itself, a linear operator A (`reduce_to_native`); the decoder adds only what A
   does not see: A+ thumbnail + (1 - A+ A) network, A+ being the pseudo-inverse.
2. `DetailPipeline`: rectified flow over the detail channels, conditioned on the thumbnail and the text.
3. `project`: the nearest 8-bit tile within 0 to 255 whose resizing is the layout tile, or an error.

Autoencoder after Esser et al., *Taming Transformers*, 2021, in the shape of Bohan's TAESD; splitting an image
into range and null space of a degradation after Wang et al., *DDNM*, 2023; momentum in projections after
Beck and Teboulle, *FISTA*, 2009.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    ConfigMixin,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from pathsynth.errors import PathSynthError
from pathsynth.generator import load_whole
from pathsynth.images import NATIVE_EDGE, Picture, to_native
from pathsynth.layout import pooled_text, sample_flow, sample_stochastically, set_steps
from pathsynth.text import TextContext
from pathsynth.weights import loading

REDUCTION: Final = 8
TILE_EDGE: Final = NATIVE_EDGE * REDUCTION
DEFAULT_STEPS: Final = 8
DEFAULT_GUIDANCE: Final = 1.0
LARGEST_RMSE: Final = 1.0
_PROJECTIONS: Final = 300
_ENOUGH: Final = 0.1
StepCallback = Callable[[int, int], None]


class ProjectionError(PathSynthError):
    """No 8-bit picture resizes to the layout tile."""


def reduction_matrix(edge: int) -> npt.NDArray[np.float64]:
    """Pillow's BILINEAR resize of one axis from `edge` px, a multiple of 8, to edge / 8 px: (edge / 8, edge).

    A triangle of 8 px on either side of each target pixel, cut and normalised at the border.
    """
    if edge < REDUCTION or edge % REDUCTION:
        raise ValueError(f"an edge of {edge} px is no multiple of {REDUCTION}")
    centres = (np.arange(edge // REDUCTION) + 0.5) * REDUCTION
    distance = np.abs(np.arange(edge) + 0.5 - centres[:, np.newaxis])
    weights = np.clip(1 - distance / REDUCTION, 0, None)
    matrix: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return matrix


@lru_cache
def _operators(edge: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    matrix = reduction_matrix(edge)
    with torch.inference_mode(False):  # kept for training too, wherever it is first needed
        return torch.from_numpy(matrix).to(dtype), torch.from_numpy(np.linalg.pinv(matrix)).to(dtype)


def reduce_to_native(tiles: torch.Tensor) -> torch.Tensor:
    """Tiles (N, C, S, S) resized to (N, C, S / 8, S / 8) as Pillow's BILINEAR does, without its rounding."""
    reduction, _ = _operators(tiles.shape[-1], tiles.dtype)
    return _both_axes(reduction, tiles)


def enlarge(thumbnails: torch.Tensor) -> torch.Tensor:
    """The smallest tiles (N, C, 8 s, 8 s) that `reduce_to_native` takes to thumbnails (N, C, s, s)."""
    _, inverse = _operators(thumbnails.shape[-1] * REDUCTION, thumbnails.dtype)
    return _both_axes(inverse, thumbnails)


def _both_axes(matrix: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    matrix = matrix.to(images.device)
    # In float32 whatever the precision around it: bfloat16 would be wrong by a grey level.
    with torch.autocast(images.device.type, enabled=False):
        return matrix @ images @ matrix.T


def project(
    tile: npt.NDArray[np.floating], layout: Picture, largest_rmse: float = LARGEST_RMSE
) -> tuple[Picture, float]:
    """The tile, in grey levels (224, 224, 3), moved so that resizing it gives `layout`.

    Goes from the tile to the nearest one that resizes to the layout tile, and from there to the nearest
    within 0 to 255, with momentum (Nesterov's, as in FISTA), until it is both. White and black areas, where
    the range binds, take longest.

    Returns:
        The uint8 tile (224, 224, 3), and the root mean square difference, in grey levels, of its resizing by
        Pillow from the layout tile.

    Raises:
        ProjectionError: the difference stays above `largest_rmse`: no picture resizes to this layout tile.
    """
    target = torch.from_numpy(layout.astype(np.float32)).permute(2, 0, 1)
    values = torch.from_numpy(np.asarray(tile, dtype=np.float32)).permute(2, 0, 1)
    ahead, momentum = values, 1.0
    for _ in range(_PROJECTIONS):
        moved = (ahead + enlarge(target - reduce_to_native(ahead))).clamp(0, 255)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / following * (moved - values)
        values, momentum = moved, following
        if float((target - reduce_to_native(values)).square().mean().sqrt()) <= _ENOUGH:
            break
    picture = values.permute(1, 2, 0).round().to(torch.uint8).contiguous().numpy()
    rmse = resizing_error(picture, layout)
    if rmse > largest_rmse:
        raise ProjectionError(
            f"No picture of {TILE_EDGE} px resizes to this {NATIVE_EDGE}-px tile to within {largest_rmse:g} "
            f"grey level (found {rmse:.2f}): its extremes lie too close together; try another seed."
        )
    return picture, rmse


def resizing_error(picture: Picture, layout: Picture) -> float:
    """Root mean square difference, in grey levels, of a picture resized to 28 px from a layout tile."""
    difference = to_native(picture).astype(np.float64) - layout
    return float(np.sqrt((difference**2).mean()))


class _Residual(nn.Module):
    """Two convolutions beside the identity; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + inner


class DetailAutoencoder(ModelMixin, ConfigMixin):
    """Convolutions between tiles (N, 3, 8 s, 8 s) in [-1, 1] and detail channels (N, k, s, s).

    `channels` are the widths at 1/8, 1/4 and 1/2 of the tile's resolution, `blocks` the residual blocks
    there.
    """

    @register_to_config
    def __init__(
        self,
        detail_channels: int = 6,
        channels: Sequence[int] = (128, 80, 48),
        blocks: Sequence[int] = (2, 2, 1),
    ) -> None:
        super().__init__()
        eighth, quarter, half = channels
        at_eighth, at_quarter, at_half = blocks
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, half, 3, padding=1),
            *(_Residual(half) for _ in range(at_half)),
            nn.Conv2d(half, quarter, 3, stride=2, padding=1),
            *(_Residual(quarter) for _ in range(at_quarter)),
            nn.Conv2d(quarter, eighth, 3, stride=2, padding=1),
            *(_Residual(eighth) for _ in range(at_eighth)),
            nn.ReLU(),
            nn.Conv2d(eighth, detail_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(3 + detail_channels, eighth, 3, padding=1),
            *(_Residual(eighth) for _ in range(at_eighth)),
            nn.Conv2d(eighth, quarter, 1),
            nn.Upsample(scale_factor=2),
            *(_Residual(quarter) for _ in range(at_quarter)),
            nn.Conv2d(quarter, half, 1),
            nn.Upsample(scale_factor=2),
            *(_Residual(half) for _ in range(at_half)),
            nn.ReLU(),
            nn.Conv2d(half, 4 * 16, 3, padding=1),
            nn.PixelShuffle(2),
            nn.ReLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """Detail channels (N, k, S / 8, S / 8) of tiles (N, 3, S, S) in [-1, 1]."""
        detail: torch.Tensor = self.encoder(tiles)
        return detail

    def decode(self, thumbnails: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """Tiles (N, 3, 8 s, 8 s), in [-1, 1] but for overshoot, that resize to `thumbnails` (N, 3, s, s)."""
        made: torch.Tensor = self.decoder(torch.cat([thumbnails, detail.to(thumbnails.dtype)], dim=1))
        made, thumbnails = made.float(), thumbnails.float()
        return made + enlarge(thumbnails - reduce_to_native(made))

    def forward(
        self, tiles: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tiles (N, 3, S, S) in [-1, 1] there and back, and their detail channels (N, k, S / 8, S / 8), to
        which `noise` of that shape is added on the way.
        """
        detail = self.encode(tiles)
        noisy = detail if noise is None else detail + noise
        return self.decode(reduce_to_native(tiles.float()), noisy), detail


def predict_detail_velocity(
    unet: nn.Module,
    noisy: torch.Tensor,
    thumbnails: torch.Tensor,
    time: torch.Tensor,
    context: TextContext,
) -> torch.Tensor:
    """Velocity (N, k, s, s) of noisy detail channels at times (N,) in [0, 1000], where 1000 is pure noise,
    given thumbnails (N, 3, s, s) in [-1, 1].
    """
    velocity: torch.Tensor = unet(
        torch.cat([noisy, thumbnails.to(noisy.dtype)], dim=1).contiguous(memory_format=torch.channels_last),
        time,
        encoder_hidden_states=context.states,
        encoder_attention_mask=context.mask,
        class_labels=pooled_text(context),
        return_dict=False,
    )[0]
    return velocity


class DetailPipeline(DiffusionPipeline):
    """Layout tiles and text to 224-px tiles. Swap the scheduler as with any diffusers pipeline.

    Inside, detail channels are standardised by `detail_mean` and `detail_std`, those of the training tiles.
    `steps` and `guidance` are how the model was meant to be sampled.
    """

    model_cpu_offload_seq = "unet->autoencoder"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        autoencoder: DetailAutoencoder,
        scheduler: FlowMatchEulerDiscreteScheduler,
        detail_mean: list[float] | None = None,
        detail_std: list[float] | None = None,
        steps: int = DEFAULT_STEPS,
        guidance: float = DEFAULT_GUIDANCE,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, autoencoder=autoencoder, scheduler=scheduler)
        count = int(autoencoder.config.detail_channels)
        self.register_to_config(
            detail_mean=detail_mean or [0.0] * count,
            detail_std=detail_std or [1.0] * count,
            steps=steps,
            guidance=guidance,
        )

    def standardise(self, detail: torch.Tensor) -> torch.Tensor:
        """Detail channels (N, k, s, s) of the autoencoder to the scale the network works at."""
        mean, std = self._statistics(detail)
        return (detail - mean) / std

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """Undo `standardise`."""
        mean, std = self._statistics(standardised)
        return standardised * std + mean

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (
            torch.tensor(self.config[name], dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
            for name in ("detail_mean", "detail_std")
        )
        return mean, std

    @torch.no_grad()
    def __call__(
        self,
        thumbnails: torch.Tensor,
        context: TextContext,
        unconditional: TextContext,
        generators: Sequence[torch.Generator],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_step: StepCallback | None = None,
    ) -> torch.Tensor:
        """One tile per generator: float (N, 3, 8 s, 8 s), which resizes to its thumbnail and may overshoot
        [-1, 1] a little; `project` makes 8 bits of it.

        Args:
            thumbnails: layout tiles (N, 3, s, s) in [-1, 1].
            context: text of each tile (N), or of all of them (1).
            unconditional: context of the empty text (1), for classifier-free guidance.
            generators: one per tile; each is used for its own tile alone.
            num_inference_steps: denoising steps; by default those of the configuration.
            guidance_scale: 1 turns guidance off; by default that of the configuration.
            on_step: called before each step with (steps done, steps); may raise to stop.
        """
        edge = thumbnails.shape[-1]
        channels = int(self.autoencoder.config.detail_channels)
        noise = torch.stack([torch.randn(channels, edge, edge, generator=each) for each in generators])
        thumbnails = thumbnails.to(self._execution_device)
        detail = self.sample(
            thumbnails,
            context,
            unconditional,
            noise,
            num_inference_steps,
            guidance_scale,
            on_step,
            generators,
        )
        tiles: torch.Tensor = self.autoencoder.decode(thumbnails, detail)
        return tiles

    @torch.no_grad()
    def sample(
        self,
        thumbnails: torch.Tensor,
        context: TextContext,
        unconditional: TextContext,
        noise: torch.Tensor,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_step: StepCallback | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Detail channels (N, k, s, s) as the autoencoder has them, from noise of that shape. The other
        arguments are those of a call, with thumbnails on the pipeline's device; `generators` are for a
        scheduler that draws fresh noise in each step.
        """
        steps = self.config.steps if num_inference_steps is None else num_inference_steps
        scale = self.config.guidance if guidance_scale is None else guidance_scale

        def velocity(noisy: torch.Tensor, time: torch.Tensor, text: TextContext) -> torch.Tensor:
            seen = thumbnails.repeat(len(noisy) // len(noise), 1, 1, 1)
            return predict_detail_velocity(self.unet, noisy, seen, time, text).to(noisy.dtype)

        set_steps(self.scheduler, steps)
        detail = sample_flow(
            self.scheduler,
            velocity,
            noise.to(thumbnails.device),
            context,
            unconditional,
            scale,
            on_step,
            generators=generators,
        )
        return self.restore(detail)

    def sample_stochastically(self) -> None:
        """From now on go from each step to data and back with fresh noise, in place of along one path."""
        sample_stochastically(self)


def detail_generator(seed: int, variation: int = 0) -> torch.Generator:
    """Random numbers for the detail of a layout tile made from `seed`; other ones than the layout's own, so
    that noise of the two is independent.
    """
    digest = hashlib.sha256(f"detail {seed} {variation}".encode("ascii")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def load_autoencoder(folder: Path) -> DetailAutoencoder:
    """A saved autoencoder in float32, frozen.

    Raises:
        WeightsError: the folder holds none, or it cannot be loaded.
    """
    with loading(folder):
        autoencoder: DetailAutoencoder = DetailAutoencoder.from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32
        )
    autoencoder.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return autoencoder


def load_detail_pipeline(folder: Path) -> DetailPipeline:
    """A saved detail pipeline in float32, for inference.

    Raises:
        WeightsError: the folder is missing a part, or one cannot be loaded.
    """
    pipeline: DetailPipeline = load_whole(DetailPipeline, folder, ("unet", "autoencoder"))
    return pipeline
