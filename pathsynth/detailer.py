"""The detail model that ships: 28-px tiles in, 224-px tiles that resize to them out, checked again."""

from collections.abc import Callable

import numpy as np
import torch

from pathsynth.attributes import ATTRIBUTES, measure, phrases
from pathsynth.detail import (
    DetailPipeline,
    ProjectionError,
    detail_generator,
    load_detail_pipeline,
    project,
)
from pathsynth.generator import CONTEXTS_FILE, load_contexts
from pathsynth.images import Picture, to_native
from pathsynth.text import TextContext
from pathsynth.threads import on_one_thread
from pathsynth.tissues import TISSUES
from pathsynth.validator import to_model_range
from pathsynth.verify import Classify, Detailed
from pathsynth.weights import Weights

COMPONENT = "detail"
# By how much an attribute may differ where its wording does, since a value may lie at the edge of a wording.
ATTRIBUTE_TOLERANCE = 0.03


class Detailer:
    """Gives 28-px tiles their detail. A result depends on the tile, its text and its seed alone."""

    def __init__(self, pipeline: DetailPipeline, unconditional: TextContext) -> None:
        self.pipeline = pipeline
        self._unconditional = unconditional

    @classmethod
    def load(cls, weights: Weights) -> "Detailer":
        """The detail pipeline of a weights folder that has one.

        Raises:
            WeightsError: a part is missing or cannot be loaded.
        """
        pipeline = load_detail_pipeline(weights.path(COMPONENT))
        return cls(pipeline, load_contexts(weights.path(CONTEXTS_FILE))[len(TISSUES) :])

    @on_one_thread()
    def render(
        self,
        layout: Picture,
        context: TextContext,
        seed: int,
        variation: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> tuple[Picture, float]:
        """The uint8 tile (224, 224, 3) of a layout tile (28, 28, 3), and how far its resizing is from that
        tile: root mean square, in grey levels, at most 1. `on_step` is called before each denoising step.

        Raises:
            ProjectionError: no picture of 224 px resizes to this tile.
        """
        made = self.pipeline(
            to_model_range(layout[np.newaxis]),
            context,
            self._unconditional,
            [detail_generator(seed, variation)],
            on_step=None if on_step is None else lambda done, total: on_step(),
        )
        grey_levels = made[0].permute(1, 2, 0).to(torch.float32).add(1).mul(127.5).cpu().numpy()
        return project(grey_levels, layout)

    def checked(
        self,
        layout: Picture,
        context: TextContext,
        seed: int,
        classify: Classify,
        variation: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> Detailed | None:
        """As `render`, with what the validator says of the result; None when the layout tile cannot be
        rendered or the measured attributes of the result are others.
        """
        try:
            picture, rmse = self.render(layout, context, seed, variation, on_step)
        except ProjectionError:
            return None
        native = to_native(picture)
        if not same_attributes(layout, native):
            return None
        (prediction,) = classify(native[np.newaxis])
        return Detailed(picture, prediction, rmse, variation)


def same_attributes(one: Picture, other: Picture) -> bool:
    """Whether two tiles of the same size have every attribute in the same words, or nearly the same value."""
    both = np.stack([one, other])
    values, words = measure(both), phrases(both)
    return all(
        first == second or abs(values[attribute.name][0] - values[attribute.name][1]) <= ATTRIBUTE_TOLERANCE
        for attribute, first, second in zip(ATTRIBUTES, *words, strict=True)
    )
