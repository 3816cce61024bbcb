"""Noise to data in a few steps, each all the way: what is noised for training, and how to sample with it.

Real data are noised to one of the times of the steps. Later steps may start from what the model itself made
in all steps before, as when sampling, in place of real data (Yin et al., *Improved Distribution Matching
Distillation*, 2024): what one step adds too much of, the next would add to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pathsynth.layout import holding, sketched, step_times

# From noisy data (M, C, H, W) at times (M,) in [0, 1], and which (N,) of the batch they are, to data.
Make = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]


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
    def sampled(self) -> torch.Tensor:
        """Which (N,) start as when sampling: in the first step, or from what the model made."""
        return self.own | (self.step == 0).to(self.own.device)

    @property
    def left(self) -> torch.Tensor:
        """How much of real data is left in each (N,): the square of its level, 0 for what the model made."""
        return torch.where(self.own, 0.0, (1 - self.time).square())


def noised(data: torch.Tensor, time: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Data (N, C, H, W) with noise like them up to times (N,) in [0, 1], 1 being noise alone."""
    level = time.view(-1, 1, 1, 1)
    return ((1 - level) * data + level * noise).contiguous(memory_format=torch.channels_last)


class FewSteps:
    """A number of steps; `first` is the share of a batch that takes the first of them (the others share the
    rest), `on_policy` the share of later ones that start from what the steps before make.

    The first starts from noise alone. Told to start `from_sketches`, those take its place, and the first is
    the one after, from what they show; `clear` is then done to the noise (N, C, H, W) of that.
    """

    def __init__(
        self,
        steps: int,
        first: float,
        on_policy: float,
        from_sketches: bool = False,
        clear: Change | None = None,
    ) -> None:
        self.times = torch.tensor(step_times(steps)[int(from_sketches) :])
        self._on_policy, self._clear = on_policy, clear
        self._chances = torch.ones(len(self.times))
        if len(self.times) > 1:
            self._chances[1:] = (1 - first) / (len(self.times) - 1)
            self._chances[0] = first

    def noise(
        self,
        data: torch.Tensor,
        make: Make,
        generator: torch.Generator,
        shown: torch.Tensor | None = None,
        held: torch.Tensor | None = None,
    ) -> Noised:
        """A batch (N, C, H, W) of real data, noised for training; `make` is called without gradients. `shown`
        (N, C, H, W) is what sketches show, where there are; every step is shown those `held` (N, C, s, s)
        without noise, or what starts from real data in a later step the sketches of that.
        """
        step = torch.multinomial(self._chances, len(data), replacement=True, generator=generator)
        own = (step > 0) & (torch.rand(len(data), generator=generator) < self._on_policy)
        start, where = self._before(data, step, shown), own.to(data.device)
        if own.any():
            first = self._before(data, torch.zeros_like(step), shown)
            start = torch.where(where.view(-1, 1, 1, 1), first, start)
            for i, time in enumerate(self.times[: int(step[own].max())]):
                further = (own & (step > i)).to(data.device)
                at = time.to(data.device).expand(int(further.sum()))
                sketches = None if held is None else held[further]
                noisy = self._noised(start[further], at, torch.tensor(i), generator, sketches)
                with torch.no_grad():
                    start[further] = make(noisy, at, further)
        time = self.times[step].to(data.device)
        if held is not None:
            real = ~(where | (step == 0).to(data.device)).view(-1, 1, 1, 1)
            held = torch.where(real, sketched(data, held.shape[-1]), held)
        return Noised(self._noised(start, time, step, generator, held), time, step, where)

    def _noised(
        self,
        data: torch.Tensor,
        time: torch.Tensor,
        step: torch.Tensor,
        generator: torch.Generator,
        held: torch.Tensor | None,
    ) -> torch.Tensor:
        """Data (N, C, H, W) with fresh noise up to times (N,) for steps (N,), or one step for all of them."""
        noise = torch.randn(data.shape, generator=generator).to(data.device)
        if self._clear is not None:
            first = (step == 0).to(data.device).view(-1, 1, 1, 1)
            noise = torch.where(first, self._clear(noise), noise)
        noisy = noised(data, time, noise)
        return noisy if held is None else holding(noisy, held, time)

    def _before(self, data: torch.Tensor, step: torch.Tensor, shown: torch.Tensor | None) -> torch.Tensor:
        """What is noised for steps (N,): data (N, C, H, W), or before the first what sketches show."""
        if shown is None:
            return data
        first = (step == 0).to(data.device).view(-1, 1, 1, 1)
        return torch.where(first, shown, data)

    def sample(
        self,
        like: torch.Tensor,
        make: Make,
        generator: torch.Generator,
        steps: int | None = None,
        shown: torch.Tensor | None = None,
        held: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Data of the shape of `like` (N, C, H, W) from noise, or from what sketches show (`shown`, as
        large), in all steps or the first `steps` of them, each of which is shown the sketches that are `held`
        (N, C, s, s). Where gradients are wanted, only the last of those has them.
        """
        made = torch.zeros_like(like) if shown is None else shown
        everything = torch.ones(len(like), dtype=torch.bool, device=like.device)
        times, wanted = self.times[:steps].to(like.device), torch.is_grad_enabled()
        for i, time in enumerate(times, 1):
            with torch.set_grad_enabled(wanted and i == len(times)):
                at = time.expand(len(like))
                noisy = self._noised(made, at, torch.tensor(i - 1), generator, held)
                made = make(noisy, at, everything)
        return made

    def up_to(self, generator: torch.Generator) -> int:
        """After how many steps to look at what they make: half the times after all, or else after fewer, each
        as often.
        """
        count = len(self.times)
        if count == 1 or torch.rand((), generator=generator) < 0.5:
            return count
        return int(torch.randint(1, count, (), generator=generator))
