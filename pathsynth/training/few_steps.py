"""Noise to data in a few steps, each all the way: what is noised for training, and how to sample with it.

Real data are noised to one of the times of the steps. Later steps may start from what the model itself made
in the step before, as when sampling, in place of real data (Yin et al., *Improved Distribution Matching
Distillation*, 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pathsynth.layout import step_times

# From noisy data (M, C, H, W) at times (M,) in [0, 1], and which (N,) of the batch they are, to data.
Make = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Noised:
    """Data (N, C, H, W) noised to times (N,) in [0, 1], 1 being noise alone, in steps (N,) counted from 0;
    `own` (N,) started from what the model made.
    """

    noisy: torch.Tensor
    time: torch.Tensor
    step: torch.Tensor
    own: torch.Tensor

    @property
    def left(self) -> torch.Tensor:
        """How much of real data is left in each (N,): the square of its level, 0 for what the model made."""
        return torch.where(self.own, 0.0, (1 - self.time).square())


def noised(data: torch.Tensor, time: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Data (N, C, H, W) with fresh noise up to times (N,) in [0, 1], 1 being noise alone."""
    level = time.view(-1, 1, 1, 1)
    noise = torch.randn(data.shape, generator=generator).to(data.device)
    return ((1 - level) * data + level * noise).contiguous(memory_format=torch.channels_last)


class FewSteps:
    """A number of steps; `first` is the share of a batch that starts from noise alone (the other steps share
    the rest), `on_policy` the share of those that start from what the step before makes.
    """

    def __init__(self, steps: int, first: float, on_policy: float) -> None:
        self.times = torch.tensor(step_times(steps))
        self._on_policy = on_policy
        self._chances = torch.ones(steps)
        if steps > 1:
            self._chances[1:] = (1 - first) / (steps - 1)
            self._chances[0] = first

    def noise(self, data: torch.Tensor, make: Make, generator: torch.Generator) -> Noised:
        """A batch (N, C, H, W) of real data, noised for training; `make` is called without gradients."""
        step = torch.multinomial(self._chances, len(data), replacement=True, generator=generator)
        own = (step > 0) & (torch.rand(len(data), generator=generator) < self._on_policy)
        start, where = data, own.to(data.device)
        if own.any():
            before = self.times[step[own] - 1].to(data.device)
            start = data.clone()
            with torch.no_grad():
                start[where] = make(noised(data[where], before, generator), before, where)
        time = self.times[step].to(data.device)
        return Noised(noised(start, time, generator), time, step, where)

    def sample(
        self, like: torch.Tensor, make: Make, generator: torch.Generator, steps: int | None = None
    ) -> torch.Tensor:
        """Data from noise, of the shape of `like` (N, C, H, W), in all steps or the first `steps` of them.
        Where gradients are wanted, only the last of those has them.
        """
        made, everything = torch.zeros_like(like), torch.ones(len(like), dtype=torch.bool, device=like.device)
        times, wanted = self.times[:steps].to(like.device), torch.is_grad_enabled()
        for i, time in enumerate(times, 1):
            with torch.set_grad_enabled(wanted and i == len(times)):
                at = time.expand(len(like))
                made = make(noised(made, at, generator), at, everything)
        return made

    def up_to(self, generator: torch.Generator) -> int:
        """After how many steps to look at what they make: half the times after all, or else after fewer, each
        as often.
        """
        count = len(self.times)
        if count == 1 or torch.rand((), generator=generator) < 0.5:
            return count
        return int(torch.randint(1, count, (), generator=generator))
