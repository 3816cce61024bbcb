"""What PathSynth answers, as pydantic models whose keys are the public JSON contract.

The same keys mean the same thing in the command line, the MCP tools, the image store and the reports.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pathsynth.data import SplitName

MAX_DESCRIPTION = 1000
MAX_COUNT = 64
MAX_SEED = 2**32 - 1
MAX_ATTEMPTS = 1000
IMAGE_ID_PATTERN = r"^[0-9a-f]{16}$"


RejectedFor = Literal["other tissue", "low confidence", "out of distribution", "near copy", "lost by detail"]


def _short(schema: dict[str, Any]) -> None:
    """Drop from a JSON schema what costs every client words and tells it nothing: titles, which repeat the
    keys, and the docstring of the class, which is for those who read the code.
    """
    schema.pop("title", None)
    schema.pop("description", None)
    for key in schema.get("properties", {}).values():
        key.pop("title", None)


class Record(BaseModel):
    """Base of every answer: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_short)


class AttemptRecord(Record):
    """One proposed tile and what the validator saw in it; `verified` says whether it was kept, `rejected_for`
    why not.
    """

    seed: int
    predicted: str = Field(description="Code of the tissue that the validator names.")
    confidence: float = Field(description="Calibrated probability of the predicted tissue.")
    verified: bool
    rejected_for: RejectedFor | None = None


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
    detailed: bool = Field(
        default=False,
        description="True when detail was added to a verified 28-px tile; the figures are of the result.",
    )
    layout_id: str | None = Field(default=None, description="Identity of that 28-px tile in the image store.")
    variation: int = Field(default=0, description="Which of several details of the same 28-px tile.")
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
    request_id: str | None = Field(
        default=None,
        description="Identity of the request: the same wishes to the same weights have the same.",
    )
    can_continue: bool = Field(
        default=False,
        description="True when the time ran out: the same request goes on where this one ended.",
    )


class Guess(Record):
    """One tissue that an image may show, with its calibrated probability."""

    tissue: str
    label: str
    confidence: float


class SyntheticOrigin(Record):
    """What tells that an image is PathSynth's; metadata can be copied or forged."""

    # With `pixels_match` true the facts are those of the image store, otherwise what the file says. Facts in
    # which the tiles of a contact sheet differ are null.
    how: Literal["embedded", "pixels"] = Field(
        description="By the provenance record in the file, or, without one, by the pixels."
    )
    pixels_match: bool | None = Field(
        description="Are they those of the stored image? null: not stored here."
    )
    statement: str
    image_id: str | None
    tissue: str | None
    verified: bool | None
    confidence: float | None
    seed: int | None
    model: str | None
    description: str | None = None
    synthetic: Literal[True] = True


class Classification(Record):
    """What the validator says of one image."""

    image: str = Field(description="Name of the image, without its folder.")
    tissue: str
    label: str
    confidence: float
    top: list[Guess] = Field(description="The three likeliest tissues, the likeliest first.")
    probabilities: dict[str, float]
    in_distribution: bool = Field(
        description="False when the image does not look like a colorectal H&E tile."
    )
    ood_score: float = Field(description="Out-of-distribution score; at or above 1 the image is not trusted.")
    verdict: str = Field(description="One sentence for a person.")
    image_id: str | None = Field(
        default=None, description="Identity in the image store, when the pixels are those of a stored image."
    )
    synthetic_origin: SyntheticOrigin | None = Field(
        default=None, description="Null does not say that the image is real."
    )
    model: str


class ClassFigures(Record):
    """Figures of one tissue."""

    precision: float
    recall: float
    f1: float
    support: int


class Measured(Record):
    """What every further figure carries: of which split, over how many images, from which seed, by which
    weights. `split` is None when the images are generated alone.
    """

    split: SplitName | None = None
    n: int
    seed: int | None = None
    model: str


class SelectivePoint(Record):
    """Accuracy over the images named with at least `confidence`, which are the share `coverage` of all."""

    coverage: float
    confidence: float
    accuracy: float


class Selective(Measured):
    """Selective accuracy: what is gained by staying silent when unsure (Geifman and El-Yaniv, 2017)."""

    points: list[SelectivePoint]


class ReliabilityBin(Record):
    """Images whose confidence lies in (low, high]: mean confidence beside accuracy, null when none does."""

    low: float
    high: float
    n: int
    confidence: float | None = None
    accuracy: float | None = None


class Reliability(Measured):
    """The reliability diagram: bins of equal width, whose weighted gaps add up to `ece`."""

    bins: list[ReliabilityBin]


class CrossFitted(Measured):
    """Accuracy and calibration error where each tenth of the images is calibrated on the other nine: what the
    report says of the split that calibration was fitted on, without that help.
    """

    accuracy: float
    ece: float


class Stress(Measured):
    """Accuracy under each disturbance by its name; `unchanged` is that of the same tiles as they are."""

    accuracy: dict[str, float]


class OutsideSet(Record):
    """Images that are no such tiles: how well the score ranks them above real ones, what share is refused."""

    what: str
    n: int
    auroc: float
    refused: float


class Outside(Measured):
    """Out-of-distribution detection; `refused` is the share of real tiles wrongly refused."""

    refused: float
    sets: dict[str, OutsideSet]


class SetFigures(Record):
    """How one set of tiles compares with another in a feature space."""

    fid: float
    kid: float
    precision: float
    recall: float
    density: float
    coverage: float


class Realism(Measured):
    """Generated tiles against real ones in the named feature space, and beside it `real_vs_real`: the same
    figures of two disjoint sets of real tiles of the same sizes. `density` and `coverage` also by tissue.
    """

    space: str
    generated: SetFigures
    real_vs_real: SetFigures
    density_by_tissue: dict[str, float]
    coverage_by_tissue: dict[str, float]


class Transfer(Measured):
    """Classification accuracy score: accuracy on `split` of a classifier trained on generated tiles alone,
    beside the same training on as many real ones. `n` counts the tiles of `split`, `trained_on` those trained
    on. `synthetic`, `real` and recall are means over trainings with `seeds`, `ratio` that of the two means.
    """

    architecture: str
    trained_on: int
    steps: int
    seeds: list[int]
    synthetic: float
    synthetic_by_seed: list[float]
    real: float
    real_by_seed: list[float]
    ratio: float
    recall_synthetic: dict[str, float]
    recall_real: dict[str, float]


class Memorisation(Measured):
    """Nearest training tile, under any of the eight symmetries. `limit` is the 1st percentile of the
    distances of `reference` real tiles of `split` to train; `below` the share of generated tiles nearer than
    that.
    """

    space: str
    reference: int
    limit: float
    below: float
    below_by_tissue: dict[str, float]
    median_generated: float
    median_real: float


class TissueStructure(Record):
    """Texture of one tissue, generated beside real. `spectrum` is the mean relative difference of the radial
    power spectrum over its frequencies, `coherence` the relative difference of the mean gradient-orientation
    coherence; the values `real_vs_real` are those of two disjoint real sets of the same sizes.
    """

    spectrum: float
    spectrum_real_vs_real: float
    coherence: float
    coherence_real_vs_real: float
    coherence_generated: float
    coherence_of_real: float
    spectrum_generated: list[float]
    spectrum_of_real: list[float]


class Structure(Measured):
    """Texture by tissue; `n` counts the generated tiles of all tissues."""

    by_tissue: dict[str, TissueStructure]


class RealOrGenerated(Measured):
    """Accuracy, on tiles it was not trained on, of a small network trained to tell generated from real tiles:
    0.5 is perfect. `real_vs_real` is that of the same training on two sets of real tiles.
    """

    accuracy: float
    real_vs_real: float


class Fidelity(Measured):
    """Spearman correlation within each tissue, averaged, between an attribute asked for in words and the same
    attribute measured in the tile; `ceiling` is what real tiles with these words reach.
    """

    mean: float
    spearman: dict[str, float]
    ceiling: dict[str, float]


class AdapterSettings(Record):
    """The LoRA adapter that a report measured: the settings it was trained and used with, and its size."""

    name: str
    bytes: int
    settings: dict[str, str | int | float | bool | list[str] | None]


class Comparison(Record):
    """A table of measurements that is no evaluation, as timings or an ablation; ships among the reports."""

    what: Literal["comparison"]
    title: str
    note: str
    columns: list[str]
    rows: list[list[str | int | float | None]]


class Distances(Record):
    """How far one set of tiles is from real ones in a feature space."""

    fid: float
    kid: float


class DetailSpace(Record):
    """The distances of detailed tiles to real ones in the named feature space, beside those of a Lanczos
    enlargement of the same thumbnails, of the autoencoder alone, and of two halves of the real ones.
    """

    space: str
    detailed: Distances
    lanczos: Distances
    autoencoder: Distances
    real_vs_real: Distances


class NucleiCounts(Record):
    """Mean count of nuclei in a tile, `n` tiles each."""

    n: int
    real: float
    detailed: float
    lanczos: float


class NucleiFigures(NucleiCounts):
    """The same of one tissue, and of its tiles from each dataset."""

    sources: dict[str, NucleiCounts] = Field(default_factory=dict)


class DetailReport(Record):
    """An evaluation of the detail model on `n` held-out real tiles of 224 px and on `layouts` layout tiles.

    `spectrum` is the mean relative difference of the radial power spectrum from that of real tiles, and
    `gradients` the Wasserstein distance of gradient magnitudes, in grey levels a px, whose mean in real tiles
    is `gradient_of_real`. `psnr` (dB) and `ssim` are of the autoencoder alone. Of the layout tiles, `failed`
    have no picture that resizes to them, and `class_unchanged` is the share in which the validator sees the
    same tissue after detailing; `rmse_mean` and `rmse_max` are in grey levels at 28 px.
    """

    what: Literal["detail"]
    source: Literal["measured", "committed report"] = "measured"
    n: int
    seed: int
    model: str
    data: str
    spaces: list[DetailSpace]
    spectrum: dict[str, float]
    gradients: dict[str, float]
    gradient_of_real: float
    nuclei: dict[str, NucleiFigures]
    psnr: float
    ssim: float
    layouts: int
    layouts_of: str
    failed: int
    class_unchanged: float
    rmse_mean: float | None
    rmse_max: float | None
    seconds_per_tile: float
    seconds: float


class Report(Record):
    """An evaluation. Macro averages run over the nine tissues; `ci95` belongs to the figure named by
    `headline`.
    """

    what: Literal["validator", "judge", "generator", "loop"]
    headline: str
    source: Literal["measured", "committed report"] = "measured"
    split: SplitName | None = None
    n: int
    seed: int | None = None
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
    data: str | None = None
    model: str
    baselines: dict[str, float] | None = None
    attempts: dict[str, int] | None = Field(default=None, description="Proposals of the loop by tissue.")

    def headline_figures(self) -> "Report":
        """The report without the further figures of a `FullReport`."""
        return Report(**{name: getattr(self, name) for name in Report.model_fields})


class FullReport(Report):
    """An evaluation with further figures, as it ships with the weights; those not measured are null."""

    selective: Selective | None = None
    reliability: Reliability | None = None
    cross_fitted: CrossFitted | None = None
    stress: Stress | None = None
    outside: Outside | None = None
    realism: list[Realism] | None = None
    transfer: Transfer | None = None
    memorisation: list[Memorisation] | None = None
    structure: Structure | None = None
    real_or_generated: RealOrGenerated | None = None
    fidelity: Fidelity | None = None
    per_class_judge: dict[str, ClassFigures] | None = Field(
        default=None, description="As `per_class`, where the judge and not the validator names the tiles."
    )
    adapter: AdapterSettings | None = None


def further_figures(report: Report) -> dict[str, float]:
    """One line for each further figure of a report, by a name for a person; the report has all of them."""
    lines: dict[str, float] = {}
    if not isinstance(report, FullReport):
        return lines
    if report.cross_fitted is not None:
        lines["accuracy, calibrated on other tenths"] = report.cross_fitted.accuracy
        lines["calibration error (ECE), calibrated on other tenths"] = report.cross_fitted.ece
    if report.stress is not None:
        lines |= {f"accuracy, {name}": value for name, value in report.stress.accuracy.items()}
    if report.outside is not None:
        lines |= {f"AUROC, {name}": each.auroc for name, each in report.outside.sets.items()}
    for each in report.realism or []:
        pairs = zip(each.generated, each.real_vs_real, strict=True)
        for (name, value), (_, real) in pairs:
            lines |= {f"{name}, {each.space}": value, f"{name}, {each.space}, real against real": real}
    if report.structure is not None:
        for code, row in report.structure.by_tissue.items():
            lines |= {f"spectrum off, {code}": row.spectrum, f"coherence off, {code}": row.coherence}
    if report.real_or_generated is not None:
        lines["told from real, 0.5 is perfect"] = report.real_or_generated.accuracy
    for copies in report.memorisation or []:
        lines[f"nearer to train than 1 % of real, {copies.space}"] = copies.below
    if report.transfer is not None:
        lines["classification accuracy score"] = report.transfer.synthetic
        lines["classification accuracy score, real tiles"] = report.transfer.real
    if report.fidelity is not None:
        lines["attributes asked and measured, mean Spearman"] = report.fidelity.mean
    return lines
