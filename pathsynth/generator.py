"""The generator that ships: the layout pipeline with its default adapter, ready to propose tiles for a
tissue.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from diffusers.utils import logging as diffusers_logging
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pathsynth.errors import WeightsError
from pathsynth.layout import ALL_TIMES, DEFAULT_GUIDANCE, DEFAULT_STEPS, LayoutPipeline
from pathsynth.text import CONTEXT_LENGTH, CONTEXT_WIDTH, TextContext, TextEncoder
from pathsynth.texture import Matrix, Variety, correct, vary
from pathsynth.threads import available_processors, on_one_thread, side_by_side
from pathsynth.tissues import CODES, TISSUES, Tissue, named_tissue
from pathsynth.turning import turned
from pathsynth.validator import from_model_range
from pathsynth.weights import Weights, loading

Time = Annotated[float, Field(ge=0, le=1)]

CONTEXTS_FILE = "contexts.safetensors"
SETTINGS_FILE = "settings.json"
WORDINGS_FILE = "wordings.json.gz"
_MOST_AT_ONCE = 4
Wordings = Mapping[str, Sequence[str]]


class SketchSampling(BaseModel):
    """How to sample the sketches that tiles start from: denoising steps and guidance. With `stochastic`, each
    step goes all the way and comes back with fresh noise. With `clear`, tiles start from one beside noise
    that has no part which a sketch would show; with `held`, noise of later steps has none either.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    guidance: float = Field(default=1.0, ge=0)
    stochastic: bool = False
    clear: bool = False
    held: bool = False


class Sampling(BaseModel):
    """How to sample with an adapter; stands beside it in `settings.json`. Guidance is applied at the times of
    its interval only, 1 being pure noise. With `stochastic`, each step goes all the way to data and comes
    back with fresh noise, as adapters that were trained against a rival need it. `texture` holds the
    matrices of `pathsynth.texture` by the code of a tissue that has any, `variety` its quantiles. With
    `sketch`, a sketch takes the place of the first of the steps. With `turned`, tiles are turned and mirrored
    by their seed, as `pathsynth.turning` does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    guidance: float = Field(ge=0)
    guidance_interval: tuple[Time, Time] = ALL_TIMES
    stochastic: bool = False
    texture: dict[str, list[list[list[float]]]] = Field(default_factory=dict)
    variety: dict[str, Variety] = Field(default_factory=dict)
    sketch: SketchSampling | None = None
    turned: bool = False

    @model_validator(mode="after")
    def _a_step_after_the_sketch(self) -> Self:
        if self.sketch is not None and self.steps < 2:
            raise ValueError("wants two steps or more, as a sketch takes the place of the first")
        return self


class Generator:
    """Proposes 28-px tiles. A tile depends on its context and its own seed alone, not on what it is made
    beside.

    With `wordings`, captions of measured attributes by the code of their tissue, a request that only names a
    tissue gets one of them by its seed: tiles then differ as real ones of the tissue do, and are asked for in
    the words that training used (after Betker et al., *Improving Image Generation with Better Captions*,
    2023).

    With `sketcher`, tiles start from sketches of few pixels of its making: a small network that knows where
    glands, gaps and folds go, since it was trained on many times as many of them, for the one that knows what
    they look like (after Ho et al., *Cascaded Diffusion Models*, 2022).
    """

    def __init__(
        self,
        pipeline: LayoutPipeline,
        contexts: TextContext,
        steps: int = DEFAULT_STEPS,
        guidance: float = DEFAULT_GUIDANCE,
        guidance_interval: tuple[float, float] = ALL_TIMES,
        wordings: Wordings | None = None,
        texture: Mapping[str, Sequence[Matrix]] | None = None,
        variety: Mapping[str, Variety] | None = None,
        sketcher: LayoutPipeline | None = None,
        sketching: SketchSampling | None = None,
        turned: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self._sketcher, self._sketching = sketcher, sketching
        self.steps, self.guidance, self.guidance_interval = steps, guidance, guidance_interval
        self._contexts = contexts
        self._texture, self._variety = texture or {}, variety or {}
        self._wordings = wordings
        self._turned = turned
        self.at_once = min(_MOST_AT_ONCE, available_processors())

    @classmethod
    def load(cls, weights: Weights) -> "Generator":
        """The base with the default adapter merged into it, in float32.

        Raises:
            WeightsError: a part is missing or cannot be loaded.
        """
        adapter = weights.path("lora/default")
        sampling = load_sampling(adapter)
        contexts = load_contexts(weights.path(CONTEXTS_FILE))
        wordings = load_wordings(weights.path(WORDINGS_FILE)) if weights.has("wordings") else None
        sketch = None if sampling.sketch is None else weights.path("sketch")
        return cls.adapted(weights.path("layout"), adapter, sampling, contexts, wordings, sketch)

    @classmethod
    def adapted(
        cls,
        base: Path,
        adapter: Path,
        sampling: Sampling,
        contexts: TextContext,
        wordings: Wordings | None = None,
        sketch: Path | None = None,
    ) -> "Generator":
        """The base in a folder with the adapter in another merged into it, in float32. `contexts` are those
        of what names the nine tissues, then that of the empty text; `sketch` is the folder of what makes
        sketches, where `sampling` has any.

        Raises:
            WeightsError: a part is missing or cannot be loaded.
        """
        if sampling.sketch is not None and sketch is None:
            raise WeightsError(f"{adapter} starts from sketches, and nothing makes any; give it what does.")
        pipeline = load_pipeline(base)
        with loading(adapter), _quiet_diffusers():
            pipeline.load_lora_weights(adapter)
            pipeline.unet.fuse_lora()
            pipeline.unet.unload_lora()
        if sampling.stochastic:
            pipeline.sample_stochastically()
        sketcher = None if sketch is None else load_pipeline(sketch)
        if sketcher is not None and sampling.sketch is not None:
            if sampling.sketch.stochastic:
                sketcher.sample_stochastically()
            else:
                sketcher.sample_in_second_order()
        return cls(
            pipeline,
            contexts,
            sampling.steps,
            sampling.guidance,
            sampling.guidance_interval,
            wordings,
            sampling.texture,
            sampling.variety,
            sketcher,
            sampling.sketch,
            sampling.turned,
        )

    def context_of(
        self, tissue: Tissue, description: str, encoder: Callable[[], TextEncoder], seed: int
    ) -> TextContext:
        """Context (1) of the tile with a seed: of the domain prompt and the description, or, when that only
        names the tissue, the attributes that the seed draws; without wordings the stored one of the prompt.

        `encoder` is asked for the text encoder when it is needed.
        """
        if named_tissue(description) == tissue:
            if self._wordings is None:
                return self._contexts[tissue.index : tissue.index + 1]
            known = self._wordings[tissue.code]
            description = known[int(np.random.default_rng(seed).integers(len(known)))]
        return encoder().encode([f"{tissue.prompt}; {description}"])

    @on_one_thread()
    def propose(
        self,
        context: TextContext,
        seeds: Sequence[int],
        on_step: Callable[[], None] | None = None,
        tissue: Tissue | None = None,
    ) -> npt.NDArray[np.uint8]:
        """One uint8 RGB tile (28, 28, 3) per seed, as (N, 28, 28, 3), of the text of each (N) or of all of
        them (1). `on_step` is called for each denoising step; `tissue` says by whose matrices and quantiles
        the texture is corrected.

        Each tile is made by itself and on one thread: matrix products round differently at different batch
        sizes, and on a CPU a batch is no faster (2.8 s a tile alone, 2.8 s in a batch of nine, measured on
        two cores under load). Up to `at_once` of them are made side by side, each on a thread of its own.
        """
        contexts = context.repeat(len(seeds)) if len(context) == 1 else context
        asked = [(contexts[i : i + 1], seed) for i, seed in enumerate(seeds)]
        makers = [partial(self._tile, self.pipeline, self._sketcher)]
        for _ in range(1, min(self.at_once, len(asked))):
            sketcher = None if self._sketcher is None else self._sketcher.beside()
            makers.append(partial(self._tile, self.pipeline.beside(), sketcher))
        if len(makers) > 1:
            made = torch.cat(side_by_side(makers, asked, on_step))
        else:
            made = torch.cat([makers[0](each, on_step or (lambda: None)) for each in asked])
        if tissue is not None:
            if (variety := self._variety.get(tissue.code)) is not None:
                made = vary(made, variety)
            if (matrices := self._texture.get(tissue.code)) is not None:
                made = correct(made, matrices)
        tiles = from_model_range(made)
        if self._turned:
            tiles = np.stack([turned(tile, seed) for tile, seed in zip(tiles, seeds, strict=True)])
        return tiles

    def _tile(
        self,
        pipeline: LayoutPipeline,
        sketcher: LayoutPipeline | None,
        asked: tuple[TextContext, int],
        on_step: Callable[[], None],
    ) -> torch.Tensor:
        """The tile (1, 3, 28, 28) in [-1, 1] of a text (1) and a seed, its texture uncorrected."""
        context, seed = asked
        random = [torch.Generator().manual_seed(seed)]
        empty = self._contexts[len(TISSUES) :]

        def before_step(done: int, total: int) -> None:
            on_step()

        sketch, how = None, self._sketching
        if sketcher is not None and how is not None:
            sketch = sketcher(context, empty, random, how.steps, how.guidance, before_step)
        return pipeline(
            context,
            empty,
            random,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            on_step=before_step,
            guidance_interval=self.guidance_interval,
            sketches=sketch,
            clear=how is not None and how.clear,
            held=how is not None and how.held,
        )


def load_sampling(adapter: Path) -> Sampling:
    """How to sample with the adapter in a folder.

    Raises:
        WeightsError: the folder does not say so.
    """
    with loading(adapter):
        return Sampling.model_validate_json((adapter / SETTINGS_FILE).read_bytes())


def load_pipeline(folder: Path) -> LayoutPipeline:
    """A saved layout pipeline in float32, for inference.

    Raises:
        WeightsError: the folder is missing a part, or one cannot be loaded.
    """
    pipeline: LayoutPipeline = load_whole(LayoutPipeline, folder, ("unet",))
    return pipeline


def load_whole(kind: type[DiffusionPipeline], folder: Path, networks: Sequence[str]) -> Any:
    """A saved pipeline of a kind, in float32, whose `networks` have every weight stored.

    Raises:
        WeightsError: the folder is missing a part, or one cannot be loaded.
    """
    with loading(folder), _quiet_diffusers():
        if not folder.is_dir():  # diffusers would take it for a name on the hub
            raise FileNotFoundError("no such folder")
        pipeline = kind.from_pretrained(folder, local_files_only=True)
        for name in networks:
            network = getattr(pipeline, name)
            with safe_open(folder / name / SAFETENSORS_WEIGHTS_NAME, "pt") as stored:
                if absent := network.state_dict().keys() - stored.keys():
                    raise KeyError(f"no {min(absent)}")  # diffusers leaves such a weight random
            network.to(memory_format=torch.channels_last)
    return pipeline


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Keep diffusers from drawing a bar for every part that it loads, from warning of what is checked, and
    from logging what it raises as well.
    """
    had_bar, verbosity = diffusers_logging.is_progress_bar_enabled(), diffusers_logging.get_verbosity()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if had_bar:
            diffusers_logging.enable_progress_bar()


def save_contexts(path: Path, encoder: TextEncoder) -> None:
    """Encode the nine domain prompts and the empty text, in this order, and write them in half precision,
    as far as the longest of them goes.
    """
    context = encoder.encode([tissue.prompt for tissue in TISSUES] + [""])
    length = int(context.mask.sum(1).max())
    states = context.states[:, :length].half().contiguous()
    save_file({"states": states, "mask": context.mask[:, :length].contiguous()}, path)


def load_contexts(path: Path) -> TextContext:
    """What `save_contexts` wrote: contexts of the nine prompts, then of the empty text.

    Raises:
        WeightsError: the file is missing or holds something else.
    """
    with loading(path):
        tensors = load_file(path)
        states, mask = tensors["states"].float(), tensors["mask"].bool()
        missing = CONTEXT_LENGTH - states.shape[1]
        if (
            states.shape[::2] != (len(TISSUES) + 1, CONTEXT_WIDTH)
            or missing < 0
            or mask.shape != states.shape[:2]
        ):
            raise ValueError(f"contexts of shape {tuple(states.shape)}")
    return TextContext(F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing)))


def save_wordings(path: Path, wordings: Wordings) -> None:
    """Write captions by the code of their tissue as JSON, compressed: they repeat few words."""
    path.write_bytes(gzip.compress(json.dumps(wordings).encode("utf-8"), mtime=0))


def load_wordings(path: Path) -> Wordings:
    """What `save_wordings` wrote, with at least one caption for every tissue.

    Raises:
        WeightsError: the file is missing or holds something else.
    """
    with loading(path):
        wordings = TypeAdapter(dict[str, list[str]]).validate_json(gzip.decompress(path.read_bytes()))
        if empty := [code for code in CODES if not wordings.get(code)]:
            raise ValueError(f"no wording of {empty[0]}")
    return wordings
