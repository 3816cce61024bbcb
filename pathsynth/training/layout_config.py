"""What a configuration of the layout model's base or of an adapter says."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from diffusers import UNet2DConditionModel
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pathsynth.attributes import caption, phrases
from pathsynth.errors import TrainingError
from pathsynth.generator import Sampling
from pathsynth.layout import (
    TILE_SIZE,
)
from pathsynth.tissues import TISSUES
from pathsynth.training.engine import OptimConfig
from pathsynth.training.pupil import PupilArchitecture
from pathsynth.training.transformer import PatchTransformer

PromptStyle = Literal["label", "domain", "domain+attributes"]


class FlowConfig(BaseModel):
    """How times are drawn and text is dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    time_mean: float = 0.0
    time_std: float = Field(default=1.0, gt=0)
    weighting: Literal["none", "cosmap", "sigma_sqrt"] = Field(
        default="none", description="How the loss is weighted by time, in the names that SD3 training has."
    )
    drop_text: float = Field(default=0.1, ge=0, le=1, description="Share of images trained without text.")
    keep_all_attributes: float = Field(default=0.5, ge=0, le=1)
    keep_attribute: float = Field(default=0.6, ge=0, le=1)

    def attributes_of(self, words: tuple[str, ...], generator: torch.Generator) -> str:
        """The attributes as text: all of them, or a random part."""
        if float(torch.rand((), generator=generator)) < self.keep_all_attributes:
            return caption(words)
        return caption(words, (torch.rand(len(words), generator=generator) < self.keep_attribute).tolist())

    def prompts(
        self,
        tiles: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        style: PromptStyle,
        generator: torch.Generator,
    ) -> list[str]:
        """Label or domain prompt of each tile, with attributes for half of the tiles where the style asks
        for them.
        """
        texts = [
            TISSUES[label].label if style == "label" else TISSUES[label].prompt for label in labels.tolist()
        ]
        if style != "domain+attributes":
            return texts
        result = []
        for text, words in zip(texts, phrases(tiles), strict=True):
            extra = ""
            if float(torch.rand((), generator=generator)) < 0.5:
                extra = self.attributes_of(words, generator)
            result.append(f"{text}; {extra}" if extra else text)
        return result

    def dropped(self, texts: Sequence[str], generator: torch.Generator) -> list[str]:
        """The texts, a random part of them empty."""
        drops = (torch.rand(len(texts), generator=generator) < self.drop_text).tolist()
        return ["" if drop else text for text, drop in zip(texts, drops, strict=True)]

    def times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Times (count,) between 0, data, and 1, noise."""
        return torch.sigmoid(torch.randn(count, generator=generator) * self.time_std + self.time_mean)


class AlignmentConfig(BaseModel):
    """How the middle of the network is drawn towards what a classifier sees in the clean tile (Yu et al.,
    *Representation Alignment for Generation*, 2025).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(gt=0, description="Weight of one minus the cosine beside the flow-matching loss.")
    width: int = Field(default=384, gt=0, description="Hidden channels of the projection.")
    layers: list[str] = Field(
        default=["layer2", "layer3"], min_length=1, description="Layers of the classifier to predict."
    )


class AdversarialConfig(BaseModel):
    """How a network learns to take few steps, against a rival (`pathsynth.training.adversarial`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=4, gt=0, description="Denoising steps to train for.")
    first_step: float = Field(
        default=0.4, gt=0, lt=1, description="Share of tiles made from pure noise; the others share the rest."
    )
    weight: float = Field(default=1.0, gt=0, description="Weight of what the rival says.")
    reconstruction: float = Field(
        default=1.0, ge=0, description="Weight of the squared distance from the tile that was noised."
    )
    rival_width: int = Field(default=64, gt=0)
    spectrum: float = Field(
        default=0.0,
        ge=0,
        description="Weight of what moves the mean power of a tissue at each frequency to that of real ones.",
    )
    attributes: float = Field(
        default=0.0, ge=0, description="Weight of how far tiles are from the attributes that were asked for."
    )
    colours: float = Field(
        default=0.0,
        ge=0,
        description="Weight of how far the mean colours of what is made are beyond those of nearly all real "
        "tiles of the tissue.",
    )
    spread: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the energy distance between the tiles made of a tissue and real ones.",
    )
    spread_scales: list[NonNegativeFloat] = Field(
        default_factory=list,
        description="Widths in px of blurs after which that distance also sees which way tiles run, and how "
        "strongly.",
    )
    recognition: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the validator's cross-entropy, where it is not nearly sure of the tissue.",
    )
    on_policy: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the tiles of later steps that start from what the steps before make.",
    )
    features: list[str] = Field(
        default_factory=list, description="Layers of the validator whose features the rival sees too."
    )
    rival_from: int = Field(default=0, ge=0, description="Step from which on the rival counts.")
    keen: bool = Field(
        default=False,
        description="The rival, spectrum and spread also see faint colours, and the rival fine texture, as "
        "strong as others.",
    )
    faint: bool = Field(
        default=False,
        description="Faint lines count as dark ones: a keen rival also sees fine texture levelled off, and "
        "what is kept of a sketch goes by plain distance, not by its square.",
    )
    pupil: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the energy distance from real tiles in what a network sees that learns from "
        "made ones alone.",
    )
    fresh_pupils: int = Field(
        default=0,
        ge=0,
        description="How many such networks, the latest of those that are trained from scratch every 200 "
        "steps, in place of one that learns on.",
    )
    fresh_architectures: list[PupilArchitecture] = Field(
        default=["small"], min_length=1, description="Architectures of fresh pupils, which are taken in turn."
    )
    sketch: PositiveInt | None = Field(
        default=None,
        description="Edge in px of sketches, from which tiles start in place of the first step.",
    )
    sketch_clear: bool = Field(
        default=False, description="Noise beside a sketch has no part that a sketch would show."
    )
    sketch_held: bool = Field(
        default=False, description="Noise of later steps has no part either that a sketch would show."
    )
    sketch_kept: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the squared distance of a tile's sketch from the one that it starts from.",
    )
    sketches: Path | None = Field(
        default=None,
        description="Folder of a saved pipeline that draws sketches, from which a share of tiles start as "
        "when sampling, seen from the folder that holds that of the run.",
    )
    sketch_steps: PositiveInt = Field(default=12, description="Denoising steps of a drawn sketch.")
    sketch_stochastic: bool = Field(
        default=False, description="What draws sketches was itself trained against a rival, for those steps."
    )
    sketches_drawn: float = Field(
        default=0.5, ge=0, le=1, description="Share of tiles that start from drawn sketches, where there are."
    )
    texture: Path | None = Field(
        default=None,
        description="Folder of an adapter whose correction of texture tiles go through before they are "
        "judged, seen from the folder that holds that of the run.",
    )

    @model_validator(mode="after")
    def _a_step_after_the_sketch(self) -> Self:
        if self.sketch is not None and self.steps < 2:
            raise ValueError("wants two steps or more, as a sketch takes the place of the first")
        if self.sketch is None and (self.sketch_clear or self.sketch_held or self.sketch_kept):
            raise ValueError("has no sketch to be clear, held or kept; give `sketch`, or leave those out")
        if self.sketch is None and self.sketches is not None:
            raise ValueError("has no use for drawn sketches; give `sketch`, or leave `sketches` out")
        if self.faint and not self.keen:
            raise ValueError("has no keen rival to see what is faint; give `keen`, or leave `faint` out")
        if (self.sketch_clear or self.sketch_held) and TILE_SIZE % (self.sketch or 1):
            raise ValueError(f"a sketch that is clear or held wants an edge that divides {TILE_SIZE} px")
        return self


def _known_tissues(weights: dict[str, float]) -> dict[str, float]:
    if unknown := weights.keys() - {tissue.code for tissue in TISSUES}:
        raise ValueError(f"names no tissue: {min(unknown)}")
    return weights


TissueWeights = Annotated[
    dict[str, PositiveFloat],
    AfterValidator(_known_tissues),
    Field(
        description="Code -> how much more often tiles of that tissue are drawn than they occur; 1 if none "
        "is given."
    ),
]


class BaseConfig(BaseModel):
    """A base run: the network, from scratch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["base"]
    optim: OptimConfig
    flow: FlowConfig = FlowConfig()
    initial: Path | None = Field(
        default=None,
        description="Folder of a saved layout pipeline to start from, seen from the folder that holds that "
        "of the run; a class embedding it lacks starts without effect.",
    )
    alignment: AlignmentConfig | None = None
    adversarial: AdversarialConfig | None = Field(
        default=None, description="Train against a rival, for few steps, in place of the flow-matching loss."
    )
    prompt_style: PromptStyle | None = Field(
        default=None, description="How captions name the tissue; not at all, and attributes alone, if None."
    )
    unet: dict[str, Any] | None = Field(default=None, description="Arguments of UNet2DConditionModel.")
    transformer: dict[str, Any] | None = Field(
        default=None, description="Arguments of PatchTransformer, in place of a U-Net."
    )
    tissue_weights: TissueWeights = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if (self.unet is None) == (self.transformer is None):
            raise ValueError("wants one network, so either `unet` or `transformer`")
        if self.transformer is not None and self.alignment is not None:
            raise ValueError("aligns a `unet`, not a `transformer`")
        if self.adversarial is not None and self.alignment is not None:
            raise ValueError("trains against a rival or with `alignment`, not both; leave one out")
        if self.adversarial is not None and self.adversarial.sketch is not None and self.edge < TILE_SIZE:
            raise ValueError("makes sketches, which start from none; leave `sketch` out")
        of_tiles = self.adversarial is not None and (self.adversarial.pupil or self.adversarial.attributes)
        if of_tiles and self.edge < TILE_SIZE:
            raise ValueError("makes sketches, and `pupil` and `attributes` are of tiles; leave them out")
        return self

    @property
    def edge(self) -> int:
        """Edge in px of what the network makes: tiles, or where it is less, sketches of them."""
        edge = (self.unet or {}).get("sample_size")
        return (
            TILE_SIZE if edge is None else int(edge) * math.isqrt(int((self.unet or {})["in_channels"]) // 3)
        )

    def network(self) -> UNet2DConditionModel | PatchTransformer:
        """The network, untrained. Raises TrainingError when it does not take these arguments."""
        if self.unet is not None:
            return new_unet(self.unet)
        with _fitting("transformer"):
            return PatchTransformer(**(self.transformer or {}))


def new_unet(arguments: dict[str, Any]) -> UNet2DConditionModel:
    """An untrained U-Net. Raises TrainingError when it does not take these arguments."""
    with _fitting("unet"):
        return UNet2DConditionModel(**arguments)


@contextmanager
def _fitting(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TrainingError(f"`{name}` does not fit ({str(error).rstrip('.')}); correct it.") from error


class LoraConfig(BaseModel):
    """A LoRA run on a trained base (Hu et al., *LoRA*, 2022)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lora"]
    base: Path | None = Field(
        default=None, description="Folder of a saved layout pipeline; None is the one that ships."
    )
    initial: Path | None = Field(
        default=None,
        description="Folder of a saved adapter of the same shape to start from, seen from the folder that "
        "holds that of the run.",
    )
    adversarial: AdversarialConfig | None = Field(
        default=None, description="Train against a rival, for few steps, in place of the flow-matching loss."
    )
    optim: OptimConfig
    flow: FlowConfig = FlowConfig()
    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    target_modules: list[str]
    prompt_style: PromptStyle = "domain+attributes"
    sampling: Sampling | None = Field(
        default=None,
        description="How to sample with the adapter, where the rival of its training does not decide that.",
    )
    tissue_weights: TissueWeights = Field(default_factory=dict)
