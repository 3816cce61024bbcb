"""What PathSynth answers, as pydantic models whose keys are the public JSON contract.

The same keys mean the same thing in the command line, the MCP tools, the image store and the reports.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pathsynth.data import SplitName

MAX_DESCRIPTION = 1000
MAX_COUNT = 64
MAX_SEED = 2**32 - 1
MAX_ATTEMPTS = 1000
IMAGE_ID_PATTERN = r"^[0-9a-f]{16}$"


class Record(BaseModel):
    """Base of every answer: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AttemptRecord(Record):
    """One proposed tile and what the validator saw in it; `verified` says whether it was kept."""

    seed: int
    predicted: str = Field(description="Code of the tissue that the validator names.")
    confidence: float = Field(description="Calibrated probability of the predicted tissue.")
    verified: bool


class TileRecord(Record):
    """One delivered tile, as it stands in the image store."""

    image_id: str = Field(pattern=IMAGE_ID_PATTERN)
    tissue: str
    label: str
    description: str
    confidence: float = Field(description="Calibrated probability of `tissue`.")
    probabilities: dict[str, float]
    verified: bool
    attempts: int = Field(description="Proposals it took since the previous kept tile, this one included.")
    seed: int
    size: int = Field(description="Edge of the stored image in px.")
    model: str
    synthetic: Literal[True] = True


class GenerationResult(Record):
    """The answer to one request. `verified` is true only when every tile asked for was kept."""

    tissue: str
    label: str
    description: str
    count: int
    verified: bool
    attempts: int
    seed: int
    size: int
    min_confidence: float
    tiles: list[TileRecord]
    rejected: list[AttemptRecord]
    message: str = Field(description="One sentence: what was done, or why fewer tiles than asked were kept.")
    seconds: float
    model: str
    synthetic: Literal[True] = True


class Classification(Record):
    """What the validator says of one image."""

    image: str = Field(description="Name of the image, without its folder.")
    tissue: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    in_distribution: bool = Field(
        description="False when the image does not look like a colorectal H&E tile."
    )
    ood_score: float = Field(description="Out-of-distribution score; at or above 1 the image is not trusted.")
    verdict: str = Field(description="One sentence for a person.")
    image_id: str | None = Field(
        default=None, description="Identity in the image store, when it is one of ours."
    )
    model: str


class ClassFigures(Record):
    """Figures of one tissue."""

    precision: float
    recall: float
    f1: float
    support: int


class Report(Record):
    """An evaluation. Macro averages run over the nine tissues; `ci95` belongs to the figure named by
    `headline`.
    """

    what: Literal["validator", "generator", "loop"]
    headline: str
    source: Literal["measured", "committed report"] = "measured"
    split: SplitName | None
    n: int
    seed: int | None
    accuracy: float
    precision: float
    recall: float
    macro_f1: float
    macro_f1_judge: float | None = None
    ci95: tuple[float, float]
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]
    ece: float | None = None
    mean_attempts: float | None = None
    seconds: float
    data: str | None
    model: str
    baselines: dict[str, float] | None = None
