"""The layout model: a text-conditioned pixel diffusion model at PathMNIST's native 28 x 28 px.

Rectified flow (Liu et al., *Flow Straight and Fast*, 2023; Esser et al., 2024): the network predicts the
velocity from data to noise. A tile is folded into patches of p x p px (pixel unshuffle), so the network
works on a coarser grid with 3 p^2 channels. The network conditions on token states of the text encoder by
cross-attention, and on their mean, which joins the embedding of the time: so what holds for the whole tile
(stain, tissue) reaches every level without attention.
"""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from torch.nn import functional as F

from pathsynth.text import CONTEXT_WIDTH, TextContext

TILE_SIZE = 28
DEFAULT_STEPS = 16
DEFAULT_GUIDANCE = 3.0
ALL_TIMES = (0.0, 1.0)
TIME_SCALE = 1000.0
LORA_FILE = "pytorch_lora_weights.safetensors"
StepCallback = Callable[[int, int], None]
Velocity = Callable[[torch.Tensor, torch.Tensor, TextContext], torch.Tensor]


def fold_size(unet: UNet2DConditionModel) -> int:
    """Edge in px of the patches that the network sees as one position."""
    return math.isqrt(int(unet.config.in_channels) // 3)


def pooled_text(context: TextContext) -> torch.Tensor:
    """One vector (N, CONTEXT_WIDTH) for each text, with components of size one: the direction of the mean
    token state.
    """
    pooled = (context.states * context.mask.unsqueeze(2)).sum(1)
    return F.normalize(pooled, dim=1) * math.sqrt(CONTEXT_WIDTH)


def predict_velocity(
    unet: torch.nn.Module, fold: int, noisy: torch.Tensor, time: torch.Tensor, context: TextContext
) -> torch.Tensor:
    """Velocity (N, 3, 28, 28) of noisy tiles at times (N,) in [0, 1000], where 1000 is pure noise."""
    folded = F.pixel_unshuffle(noisy, fold) if fold > 1 else noisy
    velocity = unet(
        folded,
        time,
        encoder_hidden_states=context.states,
        encoder_attention_mask=context.mask,
        class_labels=pooled_text(context),
        return_dict=False,
    )[0]
    return F.pixel_shuffle(velocity, fold) if fold > 1 else velocity


def edge_of(unet: Any) -> int:
    """Edge in px of what a network makes."""
    fold = fold_size(unet)
    return fold * int(unet.config.get("sample_size") or TILE_SIZE // fold)


def step_times(steps: int) -> list[float]:
    """The times, 1 being noise, at which the network is asked in `steps` equal steps from noise to data."""
    times: list[float] = np.linspace(1, 1 / steps, steps).tolist()
    return times


def sketched(tiles: torch.Tensor, edge: int) -> torch.Tensor:
    """Sketches (N, C, edge, edge) of tiles (N, C, S, S): the mean colours of equal parts of a tile."""
    return F.adaptive_avg_pool2d(tiles, edge)


def enlarged(sketches: torch.Tensor, edge: int) -> torch.Tensor:
    """Smooth tiles (N, C, edge, edge) that show what is in sketches (N, C, s, s)."""
    return F.interpolate(sketches, (edge, edge), mode="bicubic", align_corners=False)


def without_sketch(noise: torch.Tensor, edge: int) -> torch.Tensor:
    """Noise (N, C, S, S) less its mean in each part that is one pixel of a sketch of `edge` px: it leaves
    what a sketch says as clear as it was. S is a multiple of `edge`.
    """
    parts = sketched(noise, edge)
    return noise - F.interpolate(parts, noise.shape[-2:], mode="nearest")


def holding(noisy: torch.Tensor, sketches: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Noisy data (N, C, S, S) at times (N,) in [0, 1], 1 being noise alone, with the mean of each part that
    is one pixel of their sketches (N, C, s, s) put to what is left of that: a later step then sees a sketch
    as clearly as the first does (after Choi et al., *ILVR*, 2021). S is a multiple of s.
    """
    left = (1 - time).view(-1, 1, 1, 1) * sketches
    return noisy + F.interpolate(left - sketched(noisy, sketches.shape[-1]), noisy.shape[-2:], mode="nearest")


def set_steps(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, done: int = 0) -> None:
    """Set a scheduler to `steps` equal steps from noise to data, less those that are `done`. Left to itself,
    it takes the last but one to a thousandth, and the last one is wasted.
    """
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=step_times(steps)[done:])
    else:
        scheduler.set_timesteps(steps)


def sample_flow(
    scheduler: FlowMatchEulerDiscreteScheduler,
    velocity: Velocity,
    noise: torch.Tensor,
    context: TextContext,
    unconditional: TextContext,
    guidance_scale: float,
    on_step: StepCallback | None,
    guidance_interval: tuple[float, float] = ALL_TIMES,
    generators: Sequence[torch.Generator] | None = None,
    held: torch.Tensor | None = None,
) -> torch.Tensor:
    """From noise (N, C, H, W) to data, along the velocity and the steps that `scheduler` was set to.

    Args:
        velocity: from noisy data (N or 2 N), times and texts as many, to velocities.
        context: text of each item (N), or of all of them (1).
        unconditional: context of the empty text (1), for classifier-free guidance (Ho and Salimans, 2022).
        guidance_scale: 1 turns guidance off; otherwise both texts go through the network together.
        on_step: called before each step with (steps done, steps); may raise to stop.
        guidance_interval: times in [0, 1], 1 being pure noise, between which there is guidance
            (Kynkäänniemi et al., *Applying Guidance in a Limited Interval*, 2024).
        generators: one per item, for a scheduler whose `stochastic_sampling` draws fresh noise in each step.
        held: sketches (N, C, s, s) that every step is shown without noise.
    """
    count, device = len(noise), noise.device
    context = context.repeat(count) if len(context) == 1 else context
    empty = unconditional.repeat(count)
    one = TextContext(context.states.to(device), context.mask.to(device))
    both = TextContext(
        torch.cat([context.states, empty.states]).to(device), torch.cat([context.mask, empty.mask]).to(device)
    )
    low, high = guidance_interval
    data, timesteps = noise, scheduler.timesteps
    fresh = {"generator": generators} if scheduler.config.get("stochastic_sampling") else {}
    for i, time in enumerate(timesteps):
        if on_step is not None:
            on_step(i, len(timesteps))
        if held is not None:
            data = holding(data, held, time.to(device).view(1) / TIME_SCALE)
        guided = guidance_scale != 1 and low <= float(time) / TIME_SCALE <= high
        doubled = torch.cat([data, data]) if guided else data
        direction = velocity(doubled, time.expand(len(doubled)).to(device), both if guided else one)
        if guided:
            conditional, free = direction.chunk(2)
            direction = free + guidance_scale * (conditional - free)
        data = scheduler.step(direction, time, data, return_dict=False, **fresh)[0]
    return data


def sample_stochastically(pipeline: DiffusionPipeline) -> None:
    """Give a pipeline a scheduler that goes from each step to data and back with fresh noise."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.components["scheduler"].config, stochastic_sampling=True
    )
    pipeline.register_modules(scheduler=scheduler)


class LayoutPipeline(DiffusionPipeline):
    """Text to 28-px tiles. Swap the scheduler as with any diffusers pipeline; add LoRA adapters with
    `load_lora_weights`.

    Tiles leave in [-1, 1]. Inside, they are standardised by `data_mean` and `data_std`, the mean and
    standard deviation per channel of the training tiles, so that noise and data have the same scale.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        data_mean: list[float] | None = None,
        data_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(data_mean=data_mean or [0.0] * 3, data_std=data_std or [1.0] * 3)

    def standardise(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles (N, 3, 28, 28) in [-1, 1] to the scale the network works at."""
        mean, std = self._statistics(tiles)
        return (tiles - mean) / std

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """Undo `standardise`, clipped to [-1, 1]."""
        mean, std = self._statistics(standardised)
        return (standardised * std + mean).clamp(-1, 1)

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (
            torch.tensor(self.config[name], dtype=like.dtype, device=like.device).view(1, 3, 1, 1)
            for name in ("data_mean", "data_std")
        )
        return mean, std

    def load_lora_weights(self, folder: str | Path, adapter_name: str = "default") -> None:
        """Load a LoRA adapter from a folder with `pytorch_lora_weights.safetensors`, and make it the active
        one.
        """
        self.unet.load_lora_adapter(
            str(folder), prefix=None, adapter_name=adapter_name, weight_name=LORA_FILE, use_safetensors=True
        )
        self.unet.set_adapters([adapter_name])

    def beside(self) -> "LayoutPipeline":
        """A pipeline with the same network and a scheduler of its own, which counts its steps: for another
        thread.
        """
        scheduler = copy.deepcopy(self.scheduler)
        return LayoutPipeline(self.unet, scheduler, self.config.data_mean, self.config.data_std)

    def sample_stochastically(self) -> None:
        """From now on go from each step to data and back with fresh noise, in place of along one path."""
        sample_stochastically(self)

    def sample_in_second_order(self) -> None:
        """From now on take steps that also go by the one before (Lu et al., *DPM-Solver++*, 2022): few of
        them then end nearer to where many would.
        """
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=2
        )
        self.register_modules(scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        context: TextContext,
        unconditional: TextContext,
        generators: Sequence[torch.Generator],
        num_inference_steps: int = DEFAULT_STEPS,
        guidance_scale: float = DEFAULT_GUIDANCE,
        on_step: StepCallback | None = None,
        guidance_interval: tuple[float, float] = ALL_TIMES,
        sketches: torch.Tensor | None = None,
        clear: bool = False,
        held: bool = False,
    ) -> torch.Tensor:
        """One tile per generator: float (N, 3, S, S) in [-1, 1], as large as the network was made for.

        Args:
            context: text of each tile (N), or of all of them (1).
            unconditional: context of the empty text (1), for classifier-free guidance (Ho and Salimans,
                2022).
            generators: one per tile; each is used for its own tile alone, so a tile does not depend on its
                neighbours.
            num_inference_steps: denoising steps.
            guidance_scale: 1 turns guidance off.
            on_step: called before each step with (steps done, steps); may raise to stop.
            guidance_interval: times in [0, 1], 1 being pure noise, between which there is guidance.
            sketches: one per tile (N, 3, s, s) in [-1, 1], in place of the first step.
            clear: let the noise beside a sketch have no part that a sketch would show.
            held: let that of later steps have none either.
        """
        device, fold, edge = self._execution_device, fold_size(self.unet), edge_of(self.unet)
        noise = torch.stack([torch.randn(3, edge, edge, generator=each) for each in generators]).to(device)

        def velocity(noisy: torch.Tensor, time: torch.Tensor, text: TextContext) -> torch.Tensor:
            return predict_velocity(self.unet, fold, noisy, time, text)

        set_steps(self.scheduler, num_inference_steps, 0 if sketches is None else 1)
        if sketches is not None:
            level = float(self.scheduler.timesteps[0]) / TIME_SCALE
            noise = without_sketch(noise, sketches.shape[-1]) if clear else noise
            noise = (1 - level) * self.standardise(enlarged(sketches.to(device), edge)) + level * noise
        tiles = sample_flow(
            self.scheduler,
            velocity,
            noise,
            context,
            unconditional,
            guidance_scale,
            on_step,
            guidance_interval,
            list(generators),
            self.standardise(sketches.to(device)) if held and sketches is not None else None,
        )
        return self.restore(tiles)


def new_pipeline(
    unet: torch.nn.Module, data_mean: Sequence[float], data_std: Sequence[float]
) -> LayoutPipeline:
    """A pipeline with an untrained network, a UNet2DConditionModel or what is called as one."""
    unet = unet.to(memory_format=torch.channels_last)
    return LayoutPipeline(unet, FlowMatchEulerDiscreteScheduler(), list(data_mean), list(data_std))
