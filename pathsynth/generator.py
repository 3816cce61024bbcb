"""The generator that ships: the layout pipeline with its default adapter, ready to propose tiles for a
tissue.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from pathsynth.layout import DEFAULT_GUIDANCE, DEFAULT_STEPS, LayoutPipeline
from pathsynth.text import TextContext, TextEncoder, named_tissue
from pathsynth.tissues import TISSUES, Tissue
from pathsynth.validator import from_model_range
from pathsynth.weights import Weights

CONTEXTS_FILE = "contexts.safetensors"


class Generator:
    """Proposes 28-px tiles. A tile depends on its context and its own seed alone, not on what it is made
    beside.
    """

    def __init__(
        self,
        pipeline: LayoutPipeline,
        contexts: TextContext,
        steps: int = DEFAULT_STEPS,
        guidance: float = DEFAULT_GUIDANCE,
    ) -> None:
        self.pipeline = pipeline
        self.steps, self.guidance = steps, guidance
        self._contexts = contexts

    @classmethod
    def load(cls, weights: Weights) -> "Generator":
        """The base with the default adapter merged into it, in float32."""
        pipeline = load_pipeline(weights.path("layout"))
        pipeline.load_lora_weights(weights.path("lora/default"))
        pipeline.unet.fuse_lora()
        pipeline.unet.unload_lora()
        settings = json.loads(weights.path("lora/default/settings.json").read_text(encoding="utf-8"))
        return cls(
            pipeline, load_contexts(weights.path(CONTEXTS_FILE)), settings["steps"], settings["guidance"]
        )

    def context_of(self, tissue: Tissue, description: str, encoder: Callable[[], TextEncoder]) -> TextContext:
        """Context (1) of a request: the stored one when the description only names the tissue, else domain
        prompt and description.

        `encoder` is asked for the text encoder when it is needed.
        """
        if named_tissue(description) == tissue:
            return self._contexts[tissue.index : tissue.index + 1]
        return encoder().encode([f"{tissue.prompt}; {description}"])

    def propose(
        self, context: TextContext, seeds: Sequence[int], on_step: Callable[[], None] | None = None
    ) -> npt.NDArray[np.uint8]:
        """One uint8 RGB tile (28, 28, 3) per seed, as (N, 28, 28, 3). `on_step` is called before each
        denoising step.

        Tiles are made one after the other: matrix products round differently at different batch sizes, and on
        a CPU a batch is no faster (2.8 s a tile alone, 2.8 s in a batch of nine, measured on two cores under
        load).
        """
        tiles = [
            self.pipeline(
                context,
                self._contexts[len(TISSUES) :],
                [torch.Generator().manual_seed(seed)],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                on_step=None if on_step is None else lambda done, total: on_step(),
            )
            for seed in seeds
        ]
        return from_model_range(torch.cat(tiles))


def load_pipeline(folder: Path) -> LayoutPipeline:
    """A saved layout pipeline in float32, for inference."""
    pipeline: LayoutPipeline = LayoutPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def save_contexts(path: Path, encoder: TextEncoder) -> None:
    """Encode the nine domain prompts and the empty text, in this order, and write them in half precision."""
    context = encoder.encode([tissue.prompt for tissue in TISSUES] + [""])
    save_file({"states": context.states.half(), "mask": context.mask}, path)


def load_contexts(path: Path) -> TextContext:
    """What `save_contexts` wrote: contexts of the nine prompts, then of the empty text."""
    tensors = load_file(path)
    return TextContext(tensors["states"].float(), tensors["mask"])
