"""A Stable Diffusion checkpoint as the generator: tiles for the same loop, at the checkpoint's resolution.

Any text-to-image checkpoint in the layout of diffusers' `StableDiffusionPipeline` serves (Rombach et al.,
*High-Resolution Image Synthesis with Latent Diffusion Models*, 2022), with or without a LoRA adapter that
`pathsynth train lora --base` or another trainer made for it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from pathsynth.errors import WeightsError
from pathsynth.images import NATIVE_EDGE, Picture, to_native
from pathsynth.layout import LORA_FILE
from pathsynth.text import TextContext, TextEncoder
from pathsynth.tissues import Tissue, named_tissue

SETTINGS_FILE: Final = "settings.json"
INDEX_FILE: Final = "model_index.json"
DEFAULT_STEPS: Final = 50
DEFAULT_GUIDANCE: Final = 7.5
HUB_SECONDS: Final = 10.0

PromptStyle = Literal["label", "domain"]

_PIPELINE: Final = "StableDiffusionPipeline"
_PARTS: Final = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
_WITH_WEIGHTS: Final = ("text_encoder", "unet", "vae")
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SUFFIXES: Final = (".json", ".txt", ".safetensors")
_DUPLICATES: Final = re.compile(r"\.(fp16|non_ema|bf16)[.-]")
_LOADING_FAILED: Final = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


class LoraSettings(BaseModel):
    """How an adapter was trained and how to generate with it; stands beside it in `settings.json`.

    `resolution` is the edge in px at which to generate; None is that of the checkpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str | None = None
    resolution: int | None = Field(default=None, ge=NATIVE_EDGE)
    prompt_style: PromptStyle = "domain"
    steps: int = Field(default=DEFAULT_STEPS, gt=0)
    guidance: float = Field(default=DEFAULT_GUIDANCE, ge=1)


def prompt_of(tissue: Tissue, style: PromptStyle) -> str:
    """What a tissue is called in prompts of a style."""
    return tissue.label if style == "label" else tissue.prompt


def checkpoint_folder(base: str) -> Path:
    """The folder of a checkpoint: `base` itself, or the local copy of a hub id, fetched when there is none.

    A copy in the hub's cache is used as it is, so that the same id gives the same tiles, also offline.

    Raises:
        WeightsError: there is no such folder and nothing to fetch, or the folder is no Stable Diffusion
            checkpoint; says what is missing.
    """
    folder = Path(base).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise WeightsError(
                f"{base} is a file; give a folder in diffusers' layout, with {INDEX_FILE} in it, or a hub id."
            )
        if _HUB_ID.fullmatch(base) is None:
            raise WeightsError(
                f"There is no folder {base}; give the folder of a Stable Diffusion checkpoint or a hub id "
                "such as OWNER/NAME."
            )
        folder = _cached(base) or _fetched(base)
    if problem := _problem(folder):
        raise WeightsError(f"{base} is no Stable Diffusion checkpoint that can be used: {problem}.")
    return folder


def _problem(folder: Path) -> str | None:
    """What keeps a folder from being a checkpoint, or None."""
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {INDEX_FILE}; give a folder that `{_PIPELINE}.save_pretrained` wrote"
    except (OSError, ValueError) as error:
        return f"its {INDEX_FILE} cannot be read ({error}); get a whole copy of it"
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind != _PIPELINE:
        return f"it holds a {kind or 'model of unknown kind'}; give one for {_PIPELINE}"
    if missing := [part for part in _PARTS if not (folder / part).is_dir()]:
        return f"it lacks {' and '.join(missing)}; get a whole copy of it"
    if bare := [part for part in _WITH_WEIGHTS if not any((folder / part).glob("*.safetensors"))]:
        return f"it has no safetensors weights for {' and '.join(bare)}; give one with them, not pickles"
    return None


def _cached(hub_id: str) -> Path | None:
    index = try_to_load_from_cache(hub_id, INDEX_FILE)
    if not isinstance(index, str) or _problem(Path(index).parent) is not None:
        return None
    return Path(index).parent


def _fetched(hub_id: str) -> Path:
    """Download what a pipeline loads; the index comes last, so its presence says that the rest is there."""
    try:
        # Not `snapshot_download`: it asks for the list of files without a timeout.
        info = HfApi().model_info(hub_id, timeout=HUB_SECONDS)
        for name in sorted(sibling.rfilename for sibling in info.siblings or ()):
            if _is_needed(name):
                hf_hub_download(hub_id, name, revision=info.sha, etag_timeout=HUB_SECONDS)
        path = hf_hub_download(hub_id, INDEX_FILE, etag_timeout=HUB_SECONDS)  # by name, so the cache knows it
        return Path(path).parent
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise WeightsError(
            f"There is no folder {hub_id}, and no checkpoint of that name could be fetched from the hub "
            f"({_first_line(error)}); give the folder of a checkpoint, or check the id and the connection."
        ) from error


def _is_needed(name: str) -> bool:
    part, _, file = name.partition("/")
    return part in _PARTS and file.endswith(_SUFFIXES) and _DUPLICATES.search(file) is None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")[:200]


def load_pipeline(base: str) -> StableDiffusionPipeline:
    """The checkpoint in float32 on the CPU, from safetensors only.

    Its safety checker is left out: it judges photographs, and would blank tiles; here the validator decides.

    Raises:
        WeightsError: there is no such checkpoint, or it cannot be loaded.
    """
    folder = checkpoint_folder(base)
    try:
        pipeline: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            **{part: _whole(folder, part) for part in _WITH_WEIGHTS},
            local_files_only=True,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except _LOADING_FAILED as error:
        raise WeightsError(
            f"The Stable Diffusion checkpoint {base} cannot be loaded ({_first_line(error)}); "
            "get a whole copy of it."
        ) from error
    takes, given = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if takes != given:
        raise WeightsError(
            f"The network of {base} takes {takes} channels and not the {given} of its autoencoder, as models "
            "for inpainting or depth do; give a text-to-image checkpoint."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _whole(folder: Path, part: str) -> Any:
    """A network of the checkpoint. Raises KeyError for an absent weight, which would silently stay random."""
    library, name = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))[part]
    if library not in ("diffusers", "transformers"):
        raise ValueError(f"its {part} is of {library}, not of diffusers or transformers")
    network, loading = getattr(import_module(library), name).from_pretrained(
        folder / part, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if absent := loading["missing_keys"]:
        raise KeyError(f"{part} lacks {min(absent)}")
    return network


def load_adapter(pipeline: StableDiffusionPipeline, folder: Path) -> LoraSettings:
    """Merge the LoRA adapter of a folder into a pipeline, and say how to generate with it.

    Raises:
        WeightsError: the folder holds no adapter, or one for another checkpoint.
    """
    if not (folder / LORA_FILE).is_file():
        raise WeightsError(
            f"There is no LoRA adapter in {folder} (no {LORA_FILE}); "
            "give the folder named lora that `pathsynth train lora --base` wrote."
        )
    misfit = f"The LoRA adapter in {folder} does not fit this checkpoint"
    try:
        pipeline.load_lora_weights(folder, weight_name=LORA_FILE, local_files_only=True, use_safetensors=True)
    except _LOADING_FAILED as error:
        raise WeightsError(f"{misfit} ({_first_line(error)}); give one that was trained on it.") from error
    if (
        not pipeline.get_active_adapters()
    ):  # diffusers only warns when no layer has the name of one in the file
        raise WeightsError(f"{misfit}: it has no layers for its network; give one that was trained on it.")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return _settings_of(folder)


def _settings_of(folder: Path) -> LoraSettings:
    """The settings beside an adapter; the defaults for one that comes without."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return LoraSettings()
    try:
        return LoraSettings.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise WeightsError(f"{path} cannot be read; get a whole copy of the adapter.") from error


def model_hash(validator: str, base: str, lora: Path | None) -> str:
    """Short hash of what decides about a tile: the hash of the validator's weights, checkpoint, adapter."""
    digest = hashlib.sha256(validator.encode())
    folder = checkpoint_folder(base)
    parts = [path for part in _PARTS for path in (folder / part).rglob("*") if path.suffix in _SUFFIXES]
    _add_files(digest, folder, parts)
    if lora is not None:
        _add_files(
            digest, lora, (path for name in (LORA_FILE, SETTINGS_FILE) if (path := lora / name).is_file())
        )
    return digest.hexdigest()[:12]


def _add_files(digest: Any, root: Path, paths: Iterable[Path]) -> None:
    for path in sorted(paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())


class StableDiffusionGenerator:
    """Proposes 28-px tiles like `pathsynth.generator.Generator`: a tile depends on its context and its own
    seed alone.

    Contexts are CLIP's token states (1, L, W) of the checkpoint's own text encoder. After `propose`,
    `originals` holds the picture of each seed, uint8 RGB at the resolution of the checkpoint.
    """

    at_once = 1

    def __init__(self, pipeline: StableDiffusionPipeline, settings: LoraSettings | None = None) -> None:
        self.pipeline = pipeline
        self.settings = settings or LoraSettings()
        native = int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)
        self.resolution = self.settings.resolution or native
        self.originals: dict[int, Picture] = {}
        self._empty = encode(pipeline, [""])

    @classmethod
    def load(cls, base: str, lora: Path | None = None) -> "StableDiffusionGenerator":
        """A checkpoint with an adapter merged into it: in float16 on a CUDA device, else in float32.

        Raises:
            WeightsError: checkpoint or adapter is missing or cannot be used.
        """
        pipeline = load_pipeline(base)
        settings = None if lora is None else load_adapter(pipeline, lora)
        if torch.cuda.is_available():
            pipeline.to("cuda", torch.float16)
        elif torch.backends.mps.is_available():
            pipeline.to("mps")
        return cls(pipeline, settings)

    def context_of(
        self, tissue: Tissue, description: str, encoder: Callable[[], TextEncoder], seed: int
    ) -> TextContext:
        """Context (1) of a request: the prompt of the tissue, with the description when it says more, the
        same for every seed.

        `encoder` is not asked: a checkpoint understands only its own text encoder. What is longer than that
        one takes, 77 tokens with CLIP, is cut.
        """
        prompt = prompt_of(tissue, self.settings.prompt_style)
        if named_tissue(description) != tissue:
            prompt = f"{prompt}; {description}"
        return encode(self.pipeline, [prompt])

    def propose(
        self,
        context: TextContext,
        seeds: Sequence[int],
        on_step: Callable[[], None] | None = None,
        tissue: Tissue | None = None,  # the other generator corrects texture by it
    ) -> npt.NDArray[np.uint8]:
        """One uint8 RGB tile (28, 28, 3) per seed, as (N, 28, 28, 3), resized as PathMNIST was, of the text
        of each (N) or of all of them (1). `on_step` is called before the first denoising step and after each.
        """
        self.originals = {}
        contexts = context.repeat(len(seeds)) if len(context) == 1 else context
        for i, seed in enumerate(seeds):
            self.originals[seed] = self._picture(contexts[i : i + 1], seed, on_step)
        return np.stack([to_native(self.originals[seed]) for seed in seeds])

    def _picture(self, context: TextContext, seed: int, on_step: Callable[[], None] | None) -> Picture:
        def after_step(*arguments: Any) -> dict[str, Any]:
            if on_step is not None:
                on_step()
            return {}

        if on_step is not None:
            on_step()
        made = self.pipeline(
            prompt_embeds=context.states,
            negative_prompt_embeds=self._empty.states,
            height=self.resolution,
            width=self.resolution,
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="pil",
            callback_on_step_end=after_step,
        )
        return np.array(made.images[0].convert("RGB"), dtype=np.uint8)


@torch.no_grad()
def encode(pipeline: StableDiffusionPipeline, texts: Sequence[str]) -> TextContext:
    """Contexts (N) of texts by the checkpoint's own tokenizer and text encoder."""
    device = pipeline.text_encoder.device
    states, _ = pipeline.encode_prompt(list(texts), device, 1, do_classifier_free_guidance=False)
    return TextContext(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))
