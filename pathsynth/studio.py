"""The facade behind every command and tool: weights, models, loop and image store, each loaded when first
needed.

Importing this module and creating a `Studio` loads no model and imports no torch, so a server can answer its
handshake first.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pathsynth.errors import RequestError, WeightsError
from pathsynth.images import read_image, to_native
from pathsynth.records import (
    MAX_ATTEMPTS,
    MAX_COUNT,
    MAX_DESCRIPTION,
    MAX_SEED,
    AttemptRecord,
    Classification,
    DetailReport,
    FullReport,
    GenerationResult,
    Report,
    TileRecord,
)
from pathsynth.store import ImageStore, image_id_of
from pathsynth.tissues import TISSUES, Tissue, by_code

if TYPE_CHECKING:
    from pathsynth.detailer import Detailer
    from pathsynth.evaluate import FirstTiles
    from pathsynth.generator import Generator
    from pathsynth.stable_diffusion import StableDiffusionGenerator
    from pathsynth.text import TextEncoder, TissueResolver
    from pathsynth.validator import Prediction, Validator
    from pathsynth.verify import Attempt, Detailed, IsNearCopy
    from pathsynth.weights import Weights

Progress = Callable[[int, int, str], None]
CheckCancelled = Callable[[], None]
NATIVE_SIZE = 28
LEAST_CONFIDENCE = 0.9
MAX_DETAILS = 64


class GenerationRequest(BaseModel):
    """A request for verified tiles. `time_budget` in seconds, loading the models included; after it no new
    proposals are started.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field(min_length=1, max_length=MAX_DESCRIPTION)
    tissue: str | None = None
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    size: Literal[28, 224] = 224
    min_confidence: float = Field(default=0.9, ge=0, le=1)
    max_attempts: int = Field(default=30, ge=1, le=MAX_ATTEMPTS)
    time_budget: float | None = Field(default=None, gt=0)

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """A request from outside.

        Raises:
            RequestError: a field is missing or out of bounds; says which and how.
        """
        if isinstance(fields.get("description"), str) and not fields["description"].strip():
            raise RequestError("The description is empty; say in words what the tile should show.")
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise RequestError(f"`{name}` is not valid: {first['msg'].lower()}; correct it.") from error


class Studio:
    """Generate, classify, evaluate. One lock guards the models, so threads may share a studio.

    With `base`, the folder or hub id of a Stable Diffusion checkpoint, that one generates, with its adapter
    `lora` if there is one; everything else stays the same. Tiles are then stored at the resolution they were
    made at, and verified, as any image, at 28 px.
    """

    def __init__(
        self,
        weights: Path | None = None,
        home: Path | None = None,
        base: str | None = None,
        lora: Path | None = None,
    ) -> None:
        self._weights_folder = weights
        self._base, self._lora = base, lora
        self._store = ImageStore(home)
        self._models = threading.RLock()

    @property
    def store(self) -> ImageStore:
        """Where delivered tiles are kept."""
        return self._store

    @cached_property
    def weights(self) -> "Weights":
        """The weights, compared with their manifest. Raises WeightsError when they are missing or damaged."""
        from pathsynth.weights import Weights

        return Weights(self._weights_folder)

    @property
    def model(self) -> str:
        """Short hash of the weights, and of base and adapter where they generate."""
        return self.weights.model if self._base is None else self._stable_diffusion_model

    @cached_property
    def _validator(self) -> "Validator":
        from pathsynth.validator import Validator

        return Validator.load(self.weights.path("validator"))

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

    @cached_property
    def _resolver(self) -> "TissueResolver":
        from pathsynth.text import TissueResolver

        return TissueResolver(self._encoder)

    def resolve(self, description: str, tissue: str | None) -> Tissue:
        """The tissue of a request: the code when given, else the one the description names or means.

        Raises:
            RequestError: the code is unknown, or the description fits no tissue or several.
        """
        if tissue is not None:
            return by_code(tissue)
        from pathsynth.text import named_tissue

        with self._models:
            return named_tissue(description) or self._resolver.resolve(description)

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_attempt: Callable[[AttemptRecord, int], None] | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> GenerationResult:
        """Verified tiles for a request, each put into the store as soon as it is kept.

        Args:
            on_attempt: hears of every attempt with the number of tiles kept so far; may raise to stop.
            check_cancelled: called between denoising steps; may raise to stop.
        """
        from pathsynth.verify import LoopRequest, verified_tiles

        started = time.monotonic()
        tissue = self.resolve(request.description, request.tissue)
        tiles: list[TileRecord] = []
        rejected: list[AttemptRecord] = []
        since_kept = 0
        with self._models:
            context = self._generator.context_of(tissue, request.description, lambda: self._encoder)

            def propose(seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
                return self._generator.propose(context, seeds, on_step=check_cancelled)

            predict, is_near_copy = self._validator.predict, self._is_near_copy
            detailer = self._detailer if request.size > NATIVE_SIZE else None

            def add_detail(tile: npt.NDArray[np.uint8], seed: int) -> "Detailed | None":
                if detailer is None:
                    return None
                return detailer.checked(tile, context, seed, predict, on_step=check_cancelled)

            budget = request.time_budget
            loop = LoopRequest(
                tissue,
                request.count,
                request.seed,
                request.min_confidence,
                request.max_attempts,
                None if budget is None else budget - (time.monotonic() - started),
            )
            detail = None if detailer is None else add_detail
            for attempt in verified_tiles(loop, propose, predict, is_near_copy, add_detail=detail):
                since_kept += 1
                seen = _attempt_record(attempt)
                if attempt.verified:
                    tiles.append(self._keep(attempt, tissue, request.description, since_kept))
                    since_kept = 0
                else:
                    rejected.append(seen)
                if on_attempt is not None:
                    on_attempt(seen, len(tiles))
        attempts = len(tiles) + len(rejected)
        return GenerationResult(
            tissue=tissue.code,
            label=tissue.label,
            description=request.description,
            count=request.count,
            verified=len(tiles) == request.count,
            attempts=attempts,
            seed=request.seed,
            size=request.size,
            min_confidence=request.min_confidence,
            tiles=tiles,
            rejected=rejected,
            message=_message(request, tissue, len(tiles), attempts),
            seconds=round(time.monotonic() - started, 3),
            model=self.model,
        )

    def _keep(self, attempt: "Attempt", tissue: Tissue, description: str, attempts: int) -> TileRecord:
        picture = attempt.tile if self._base is None else self._stable_diffusion.originals[attempt.seed]

        def record(image_id: str) -> TileRecord:
            return TileRecord(
                image_id=image_id,
                tissue=tissue.code,
                label=tissue.label,
                description=description,
                confidence=attempt.prediction.confidence,
                probabilities=attempt.prediction.probabilities,
                verified=True,
                attempts=attempts,
                seed=attempt.seed,
                size=len(picture),
                model=self.model,
            )

        kept = self.store.put(picture, record).record
        return kept if attempt.detailed is None else self._keep_detailed(attempt.detailed, kept)

    def _keep_detailed(self, detailed: "Detailed", layout: TileRecord) -> TileRecord:
        """Store a tile with its detail beside the layout tile, which is stored already."""
        changes = {
            "confidence": detailed.prediction.confidence,
            "probabilities": detailed.prediction.probabilities,
            "size": len(detailed.picture),
            "model": self.model,
            "detailed": True,
            "layout_id": layout.image_id,
            "variation": detailed.variation,
        }

        def record(image_id: str) -> TileRecord:
            return layout.model_copy(update=changes | {"image_id": image_id})

        return self.store.put(detailed.picture, record).record

    def variations(
        self, image_id: str, count: int, check_cancelled: CheckCancelled | None = None
    ) -> list[TileRecord]:
        """`count` further details of the layout tile of a stored image, each named as that tile by the
        validator, with no less confidence or at least 0.9, and put into the store. They may be fewer when
        `MAX_DETAILS` did not give as many.

        Raises:
            StoreError: there is no such image.
            RequestError: these weights have no detail model, or the image has no layout tile of 28 px.
        """
        stored = self.store.get(image_id)
        layout = self.store.get(stored.record.layout_id) if stored.record.layout_id else stored
        if layout.record.size != NATIVE_SIZE:
            raise RequestError(
                f"The image {image_id} was not made from a tile of {NATIVE_SIZE} px, so it has no variations."
            )
        tissue, least = by_code(layout.record.tissue), min(LEAST_CONFIDENCE, layout.record.confidence)
        made: list[TileRecord] = []
        with self._models:
            detailer = self._detailer
            if detailer is None:
                raise RequestError("These weights have no detail model; install ones that do.")
            context = self._generator.context_of(tissue, layout.record.description, lambda: self._encoder)
            for variation in range(1, MAX_DETAILS + 1):
                if len(made) == count:
                    break
                detailed = detailer.checked(
                    layout.pixels(),
                    context,
                    layout.record.seed,
                    self._validator.predict,
                    variation,
                    check_cancelled,
                )
                if (
                    detailed is not None
                    and detailed.prediction.code == tissue.code
                    and detailed.prediction.in_distribution
                    and detailed.prediction.confidence >= least
                ):
                    made.append(self._keep_detailed(detailed, layout.record))
        return made

    def classify(self, source: Path | bytes, name: str) -> Classification:
        """What the validator sees in an image.

        Raises:
            ImageError: the image cannot be read or is smaller than 28 px.
        """
        image = read_image(source)
        native = to_native(image)
        with self._models:
            prediction = self._validator.predict(native[np.newaxis])[0]
        image_id = image_id_of(image)
        return Classification(
            image=name,
            tissue=prediction.code,
            label=by_code(prediction.code).label,
            confidence=prediction.confidence,
            probabilities=prediction.probabilities,
            in_distribution=prediction.in_distribution,
            ood_score=prediction.ood_score,
            verdict=_verdict(prediction),
            image_id=image_id if self.store.has(image_id) else None,
            model=self.model,
        )

    def evaluate_validator(self, split: Literal["val", "test"], progress: Progress | None = None) -> Report:
        """The validator on all of a split. Raises DataError when PathMNIST is not there."""
        from pathsynth.data import load_split
        from pathsynth.evaluate import evaluate_validator

        tiles = load_split(split)
        with self._models:
            return evaluate_validator(self._validator, tiles, self.model, progress)

    def study_validator(self, split: Literal["val", "test"], progress: Progress | None = None) -> FullReport:
        """As `evaluate_validator`, with baselines, stress and out-of-distribution figures; takes minutes.

        Raises:
            DataError: PathMNIST is not there.
        """
        from pathsynth.data import load_split
        from pathsynth.evaluate import evaluate_validator

        tiles, train = load_split(split), load_split("train")
        with self._models:
            return evaluate_validator(self._validator, tiles, self.model, progress, train=train)

    def first_tiles(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> "FirstTiles":
        """The first `per_class` tiles of every tissue, none discarded, for `study_generator`."""
        from pathsynth.evaluate import first_tiles

        with self._models:
            contexts = [self._generator.context_of(t, t.label, lambda: self._encoder) for t in TISSUES]

            def propose(tissue: Tissue, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
                return self._generator.propose(contexts[tissue.index], seeds, on_step=check_cancelled)

            return first_tiles(propose, per_class, seed, self.model, progress)

    def evaluate_tiles(
        self, tiles: "FirstTiles", judge: bool = False, progress: Progress | None = None
    ) -> Report:
        """As `evaluate_generator`, of tiles made before."""
        from pathsynth.evaluate import report_on_tiles

        judging = self._judge if judge else None
        with self._models:
            return report_on_tiles(tiles, self._validator, judging, progress)

    def study_generator(self, tiles: "FirstTiles", progress: Progress | None = None) -> FullReport:
        """As `evaluate_tiles`, with everything that compares the tiles with real ones, which takes an hour or
        more. The judge is asked where the weights have one.

        Raises:
            DataError: PathMNIST is not there.
            RequestError: there are too few tiles.
        """
        from pathsynth.data import load_split
        from pathsynth.evaluate import RealTiles, further_generator_figures, report_on_tiles

        real = RealTiles(load_split("train"), load_split("val"), load_split("test"))
        judge = self._judge if self.weights.has("judge") else None

        def described(tissue: Tissue, description: str, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
            context = self._generator.context_of(tissue, description, lambda: self._encoder)
            return np.stack([to_native(tile) for tile in self._generator.propose(context, seeds)])

        with self._models:
            report = report_on_tiles(tiles, self._validator, judge, progress)
            return further_generator_figures(report, tiles, real, self._validator, judge, described, progress)

    def evaluate_generator(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        judge: bool = False,
        check_cancelled: CheckCancelled | None = None,
    ) -> Report:
        """Unfiltered first-shot tiles of every tissue, named by the validator, with `judge` by the judge
        too.
        """
        from pathsynth.evaluate import evaluate_generator

        judging = self._judge if judge else None
        with self._models:
            contexts = [self._generator.context_of(t, t.label, lambda: self._encoder) for t in TISSUES]

            def propose(tissue: Tissue, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
                return self._generator.propose(contexts[tissue.index], seeds, on_step=check_cancelled)

            return evaluate_generator(
                propose, self._validator, judging, per_class, seed, self.model, progress
            )

    def evaluate_loop(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> Report:
        """What the loop accepted at its default confidence, scored by the judge: a filter that scores itself
        says nothing.
        """
        from pathsynth.evaluate import evaluate_loop

        judge = self._judge
        with self._models:
            contexts = [self._generator.context_of(t, t.label, lambda: self._encoder) for t in TISSUES]

            def propose(tissue: Tissue, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
                return self._generator.propose(contexts[tissue.index], seeds, on_step=check_cancelled)

            return evaluate_loop(
                propose, self._validator, judge, per_class, seed, self.model, progress, self._is_near_copy
            )

    def evaluate_detail(
        self,
        most: int,
        per_class: int,
        seed: int,
        tiles: "FirstTiles | None" = None,
        sheets: Path | None = None,
        progress: Progress | None = None,
    ) -> DetailReport:
        """The detail model against at most `most` held-out real tiles of 224 px, and on layout tiles: `tiles`
        made before, else `per_class` tiles of each tissue of PathMNIST val. `sheets` is a folder for pictures
        to look at, which hold real tiles.

        Raises:
            WeightsError: these weights have no detail model.
            DataError: the folder of detail tiles, or PathMNIST, is not there.
        """
        from pathsynth.detail import TILE_EDGE
        from pathsynth.detail_quality import compare, measure_detail, on_layouts, write_detail_sheets
        from pathsynth.generator import CONTEXTS_FILE, load_contexts
        from pathsynth.training.hires import HiresTiles

        detailer = self._detailer
        if detailer is None:
            raise WeightsError("These weights hold no detail model; train one with `pathsynth train detail`.")
        held = HiresTiles(only_held_out=True, progress=progress)
        real = held.held_colour.fitting(TILE_EDGE).centres(TILE_EDGE, most)
        images, origin = _layouts(per_class, seed) if tiles is None else (tiles.images, "generator")
        with self._models:
            validator, contexts = self._validator, load_contexts(self.weights.path(CONTEXTS_FILE))
            sets = compare(real, detailer, contexts, validator, seed, progress)
            layouts = on_layouts(images, detailer, contexts, validator, seed, progress)
            if sheets is not None:
                write_detail_sheets(sets, layouts, sheets)
            return measure_detail(sets, layouts, origin, validator, seed, self.model, held.sha256, progress)

    @cached_property
    def _judge(self) -> "Validator":
        from pathsynth.validator import Validator

        if not self.weights.has("judge"):
            raise WeightsError(
                "These weights hold no judge, and a filter that scores itself says nothing; "
                "train one with `pathsynth train judge`, or use `pathsynth evaluate generator`."
            )
        return Validator.load(self.weights.path("judge"))

    def committed_report(self, name: str) -> Report:
        """A report that ships with the weights: validator-val, validator-test or generator."""
        path = self.weights.path(f"reports/{name}.json")
        try:
            report = FullReport.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise WeightsError(f"These weights carry no readable report named {name}.") from error
        return report.model_copy(update={"source": "committed report"})


def _layouts(per_class: int, seed: int) -> tuple[npt.NDArray[np.uint8], str]:
    """`per_class` tiles of each tissue of PathMNIST val, drawn with `seed`, and where they come from."""
    from pathsynth.data import load_split

    val, random = load_split("val"), np.random.default_rng(seed)
    chosen = [random.permutation(np.flatnonzero(val.labels == t.index))[:per_class] for t in TISSUES]
    return val.images[np.concatenate(chosen)], "PathMNIST val"


def _attempt_record(attempt: "Attempt") -> AttemptRecord:
    prediction = attempt.prediction
    return AttemptRecord(
        seed=attempt.seed,
        predicted=prediction.code,
        confidence=prediction.confidence,
        verified=attempt.verified,
        rejected_for=attempt.rejected_for,
    )


def _message(request: GenerationRequest, tissue: Tissue, kept: int, attempts: int) -> str:
    if kept == request.count:
        tiles = "1 tile" if kept == 1 else f"{kept} tiles"
        return f"{tiles} of {tissue.label} verified in {attempts} attempts."
    spent = "attempts" if attempts >= request.max_attempts else "time budget"
    return (
        f"Only {kept} of {request.count} tiles of {tissue.label} were verified in {attempts} attempts "
        f"before the {spent} ran out; try another seed, more attempts, "
        f"or a lower confidence than {request.min_confidence:g}."
    )


def _verdict(prediction: "Prediction") -> str:
    label = by_code(prediction.code).label
    if not prediction.in_distribution:
        return (
            "This does not look like a colorectal H&E tile of about 112 um edge; "
            f"the nearest tissue, {label}, means nothing."
        )
    if prediction.confidence < 0.5:
        return f"Unsure: {label} is the likeliest at {prediction.confidence:.0%}."
    return f"This looks like {label} ({prediction.confidence:.0%})."
