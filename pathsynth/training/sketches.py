"""Sketches as users' tiles start from, drawn while an adapter trains.

An adapter that has seen sketches of real tiles alone takes what a network draws for real ones, and neither a
rival nor a pupil ever sees what comes of that.
"""

import torch

from pathsynth.layout import LayoutPipeline, edge_of
from pathsynth.text import TextContext


class SketchDrawer:
    """Draws sketches for texts in `steps` steps without guidance, as a `Generator` does.

    `pipeline` is what draws them, and is told to take steps of the second order, or if `stochastic` such as
    come back with fresh noise; `empty` (1) is the context of the empty text.
    """

    def __init__(
        self, pipeline: LayoutPipeline, steps: int, empty: TextContext, *, stochastic: bool = False
    ) -> None:
        self._pipeline, self._steps, self._empty = pipeline, steps, empty
        pipeline.unet.requires_grad_(False).eval()
        if stochastic:
            pipeline.sample_stochastically()
        else:
            pipeline.sample_in_second_order()

    @property
    def edge(self) -> int:
        """Edge in px of a sketch."""
        return edge_of(self._pipeline.unet)

    def __call__(self, context: TextContext, generator: torch.Generator) -> torch.Tensor:
        """One sketch (N, 3, edge, edge) in [-1, 1] for each text (N), of seeds that `generator` draws."""
        seeds = torch.randint(2**62, (len(context),), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # In full precision, as users' are: a scheduler would leave them in that of the network.
        with torch.autocast(context.states.device.type, enabled=False):
            return self._pipeline(context, self._empty, generators, self._steps, 1.0)
