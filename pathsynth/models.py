"""The weights and the networks in them, each loaded when first needed.

Importing this module and creating `Models` loads no model and imports no torch.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from pathsynth.errors import WeightsError
from pathsynth.tissues import Tissue

if TYPE_CHECKING:
    from pathsynth.detailer import Detailer
    from pathsynth.generator import Generator
    from pathsynth.stable_diffusion import StableDiffusionGenerator
    from pathsynth.text import TextContext, TextEncoder
    from pathsynth.validator import Validator
    from pathsynth.verify import IsNearCopy
    from pathsynth.weights import Weights


class Models:
    """What generates, classifies and judges. Threads may share it: one at a time loads models, and one at a
    time generates.

    With `base`, the folder or hub id of a Stable Diffusion checkpoint, that one generates, with its adapter
    `lora` if there is one; everything else stays the same.
    """

    def __init__(
        self, weights: Path | None = None, base: str | None = None, lora: Path | None = None
    ) -> None:
        self._weights_folder = weights
        self._base, self._lora = base, lora
        self._loading = threading.RLock()  # while models are loaded, and for the text encoder
        self._generating = threading.RLock()

    @property
    def weights_folder(self) -> Path:
        """The folder of the weights, whether or not they are there; nothing is read."""
        from pathsynth.weights import default_folder

        return self._weights_folder or default_folder()

    @cached_property
    def weights(self) -> "Weights":
        """The weights, compared with their manifest. Raises WeightsError when they are missing or damaged."""
        from pathsynth.weights import Weights

        return Weights(self._weights_folder)

    @property
    def weights_state(self) -> Literal["verified", "present", "missing or damaged"]:
        """What is known of the weights without reading them: `verified` once they were compared with their
        manifest, `present` when every file has the size that the manifest gives."""
        if "weights" in vars(self):
            return "verified"
        from pathsynth.weights import looks_whole

        return "present" if looks_whole(self._weights_folder) else "missing or damaged"

    @property
    def model(self) -> str:
        """Short hash of the weights, and of base and adapter where they generate. Only the manifest is read,
        unless a checkpoint generates.
        """
        return self._manifest_model if self._base is None else self._stable_diffusion_model

    @cached_property
    def _manifest_model(self) -> str:
        from pathsynth.weights import read_manifest

        return read_manifest(self.weights_folder).model

    @cached_property
    def _validator(self) -> "Validator":
        from pathsynth.outliers import load_validator

        return load_validator(self.weights)

    @cached_property
    def _judge(self) -> "Validator":
        from pathsynth.validator import Validator

        if not self.weights.has("judge"):
            raise WeightsError(
                "These weights hold no judge, and a filter that scores itself says nothing; "
                "train one with `pathsynth train judge`, or use `pathsynth evaluate generator`."
            )
        return Validator.load(self.weights.path("judge"))

    @cached_property
    def _generator(self) -> "Generator | StableDiffusionGenerator":
        if self._base is not None:
            return self._stable_diffusion
        from pathsynth.generator import Generator

        return Generator.load(self.weights)

    @cached_property
    def _stable_diffusion(self) -> "StableDiffusionGenerator":
        from pathsynth.stable_diffusion import StableDiffusionGenerator

        return StableDiffusionGenerator.load(str(self._base), self._lora)

    @cached_property
    def _stable_diffusion_model(self) -> str:
        from pathsynth.stable_diffusion import model_hash

        return model_hash(self.weights.model, str(self._base), self._lora)

    @cached_property
    def _is_near_copy(self) -> "IsNearCopy | None":
        from pathsynth.nearcopy import INDEX_FILE, NearCopyIndex

        if not self.weights.has("near-copies"):
            return None
        return NearCopyIndex.load(self.weights.path(INDEX_FILE)).is_near_copy

    @cached_property
    def _detailer(self) -> "Detailer | None":
        if self._base is not None or not self.weights.has("detail"):
            return None
        from pathsynth.detailer import Detailer

        return Detailer.load(self.weights)

    @cached_property
    def _encoder(self) -> "TextEncoder":
        from pathsynth.text import TextEncoder

        return TextEncoder()

    def _context(
        self, generator: "Generator | StableDiffusionGenerator", tissue: Tissue, description: str, seed: int
    ) -> "TextContext":
        """Context (1) of the tile with a seed that a request wants."""
        with self._loading:
            return generator.context_of(tissue, description, lambda: self._encoder, seed)


def made(
    generator: "Generator | StableDiffusionGenerator",
    tissue: Tissue,
    context_of: Callable[[int], "TextContext"],
    seeds: Sequence[int],
    on_step: Callable[[], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """A tile of a tissue for each seed, from the context (1) of that seed."""
    contexts = [context_of(seed) for seed in seeds]
    if len(contexts) == 1:
        return generator.propose(contexts[0], seeds, on_step, tissue)
    from pathsynth.text import joined

    return generator.propose(joined(contexts), seeds, on_step, tissue)
