"""The facade behind every command and tool: weights, models, loop and image store, each loaded when first
needed.

Importing this module and creating a `Studio` loads no model and imports no torch, so a server can answer its
handshake first.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pathsynth.errors import OutOfTimeError, RequestError, StoreError, WeightsError
from pathsynth.history import Remembered, RequestHistory
from pathsynth.images import Picture, read_image_and_xmp, to_native
from pathsynth.origin import synthetic_origin
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
    Guess,
    Report,
    SyntheticOrigin,
    TileRecord,
)
from pathsynth.store import ImageStore
from pathsynth.tissues import TISSUES, Tissue, by_code, named_tissue

if TYPE_CHECKING:
    from pathsynth.detailer import Detailer
    from pathsynth.evaluate import FirstTiles
    from pathsynth.generator import Generator
    from pathsynth.stable_diffusion import StableDiffusionGenerator
    from pathsynth.text import TextContext, TextEncoder, TissueResolver
    from pathsynth.validator import Validator
    from pathsynth.verify import Attempt, Detailed, IsNearCopy, Prediction
    from pathsynth.weights import Weights

Progress = Callable[[int, int, str], None]
CheckCancelled = Callable[[], None]
NATIVE_SIZE = 28
_REQUEST_ID_LENGTH = 12
_LIKELIEST = 3
LEAST_CONFIDENCE = 0.9
MAX_DETAILS = 64


class GenerationRequest(BaseModel):
    """A request for verified tiles. `time_budget` in seconds, loading the models included; when it is spent,
    the proposal under way is given up between two denoising steps. It is no part of what is asked for: the
    same wishes with another budget are the same request.
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
    """Generate, classify, evaluate. Threads may share a studio: one at a time loads models, one at a time
    generates, and the validator takes one batch at a time, so a classification does not wait for a generation
    to end.

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
        self._models = threading.RLock()  # while models are loaded, and for the text encoder
        self._generating = threading.RLock()

    @property
    def store(self) -> ImageStore:
        """Where delivered tiles are kept."""
        return self._store

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
    def history(self) -> RequestHistory:
        """What was asked before, beside the image store."""
        return RequestHistory(self.store.root)

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
        named = named_tissue(description)
        if named is not None:
            return named
        with self._models:
            return self._resolver.resolve(description)

    def request_id(self, request: GenerationRequest) -> str:
        """Identity of a request: 12 hexadecimal digits of the SHA-256 over its wishes and the weights.

        How long to try, in seconds or attempts, is no wish: with more of either, the same request goes on.
        """
        wishes = request.model_copy(update={"tissue": _asked_code(request)})
        text = f"{wishes.model_dump_json(exclude={'time_budget', 'max_attempts'})} {self.model}"
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:_REQUEST_ID_LENGTH]

    def remembered_request(self, request_id: str, max_attempts: int = 1) -> GenerationRequest:
        """The request of an earlier answer, to go on with it.

        Args:
            max_attempts: takes the place of that of the request where it is larger.

        Raises:
            RequestError: no such request is remembered, or it was made to other weights.
        """
        remembered = self.history.load(request_id)
        if remembered is None:
            raise RequestError(
                f"No request {request_id[:20]!r} is remembered; "
                "give the `request_id` of an earlier answer, or make the request anew."
            )
        result = remembered.result
        if result.model != self.model:
            raise RequestError(
                f"The request {request_id} was made to other weights ({result.model}); make the request anew."
            )
        return GenerationRequest.checked(
            description=result.description,
            tissue=remembered.tissue,
            count=result.count,
            seed=result.seed,
            size=result.size,
            min_confidence=result.min_confidence,
            max_attempts=max(remembered.max_attempts, max_attempts),
        )

    def recall(self, request: GenerationRequest) -> GenerationResult | None:
        """What is known of a request without any model: its result, or as much of it as there is so far.

        What was tried beyond `max_attempts` does not count, nor does a tile that is no longer in the store,
        and what was tried after it. None when nothing is known.
        """
        remembered = self.history.load(self.request_id(request))
        if remembered is None:
            return None
        result, limit = remembered.result, request.max_attempts
        tiles: list[TileRecord] = []
        tried = 0
        for tile in result.tiles:
            tried += tile.attempts
            if tried > limit:
                break
            try:
                self.store.get(tile.image_id)
            except StoreError:
                limit = tried - 1
                break
            tiles.append(tile)
        counted = {(result.seed + step) % (MAX_SEED + 1) for step in range(min(limit, result.attempts))}
        rejected = [attempt for attempt in result.rejected if attempt.seed in counted]
        return self._result(request, by_code(result.tissue), tiles, rejected, result.seconds)

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_attempt: Callable[[AttemptRecord, int], None] | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> GenerationResult:
        """Verified tiles for a request, each put into the store as soon as it is kept.

        A request is remembered: made again, it goes on where it ended, and once it is done its result comes
        from the store as it was.

        Args:
            on_attempt: hears of every attempt that is made now, with the number of tiles kept so far; may
            raise to
                stop.
            check_cancelled: called between denoising steps; may raise to stop.
        """
        from pathsynth.verify import LoopRequest, verified_tiles

        deadline = _deadline(time.monotonic(), request.time_budget)
        known = self.recall(request)
        if known is not None and not known.can_continue:
            return known
        tissue = self.resolve(request.description, request.tissue if known is None else known.tissue)
        request_id = self.request_id(request)
        with self._generating:
            started = time.monotonic()
            with self._models:
                generator, validator, is_near_copy = self._generator, self._validator, self._is_near_copy
                detailer = self._detailer if request.size > NATIVE_SIZE else None
            known = self.recall(request)  # another thread may have gone on with it
            if known is not None and not known.can_continue:
                return known
            tiles = [] if known is None else list(known.tiles)
            rejected = [] if known is None else list(known.rejected)
            spent = 0.0 if known is None else known.seconds
            since_kept = len(tiles) + len(rejected) - sum(tile.attempts for tile in tiles)
            self.history.sweep()

            def so_far() -> GenerationResult:
                seconds = spent + time.monotonic() - started
                return self._result(request, tissue, tiles, rejected, seconds)

            @lru_cache(maxsize=1)  # layout and detail of a tile have the same text
            def context_of(seed: int) -> "TextContext":
                return self._context(generator, tissue, request.description, seed)

            def propose(seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
                between = _between_steps(check_cancelled, deadline)
                return _made(generator, tissue, context_of, seeds, between)

            predict = validator.predict

            def add_detail(tile: npt.NDArray[np.uint8], seed: int) -> "Detailed | None":
                if detailer is None:
                    return None
                between = _between_steps(check_cancelled, deadline)
                return detailer.checked(tile, context_of(seed), seed, predict, on_step=between)

            detail = None if detailer is None else add_detail
            loop = LoopRequest(
                tissue,
                request.count,
                request.seed,
                request.min_confidence,
                request.max_attempts,
                None if deadline is None else deadline - time.monotonic(),
                kept=len(tiles),
                tried=len(tiles) + len(rejected),
            )
            try:
                for attempt in verified_tiles(loop, propose, predict, is_near_copy, add_detail=detail):
                    since_kept += 1
                    seen = _attempt_record(attempt)
                    if attempt.verified:
                        tiles.append(self._keep(attempt, tissue, request.description, since_kept))
                        since_kept = 0
                    else:
                        self.history.save_rejected(request_id, attempt.seed, attempt.tile)
                        rejected.append(seen)
                    self._remember(request, so_far())
                    if on_attempt is not None:
                        on_attempt(seen, len(tiles))
            except OutOfTimeError:
                pass
            result = so_far()
            self._remember(request, result)
        return result

    def rejected_tiles(self, result: GenerationResult) -> list[tuple[AttemptRecord, npt.NDArray[np.uint8]]]:
        """The rejected attempts of a result whose 28-px tiles (28, 28, 3) are still there."""
        if result.request_id is None:
            return []
        found = []
        for attempt in result.rejected:
            tile = self.history.rejected(result.request_id, attempt.seed)
            if tile is not None:
                found.append((attempt, tile))
        return found

    def _remember(self, request: GenerationRequest, result: GenerationResult) -> None:
        self.history.save(
            Remembered(tissue=_asked_code(request), max_attempts=request.max_attempts, result=result)
        )

    def _result(
        self,
        request: GenerationRequest,
        tissue: Tissue,
        tiles: Sequence[TileRecord],
        rejected: Sequence[AttemptRecord],
        seconds: float,
    ) -> GenerationResult:
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
            tiles=list(tiles),
            rejected=list(rejected),
            message=_message(request, tissue, len(tiles), attempts),
            seconds=round(seconds, 3),
            model=self.model,
            request_id=self.request_id(request),
            can_continue=len(tiles) < request.count and attempts < request.max_attempts,
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
        with self._generating:
            with self._models:
                generator, validator, detailer = self._generator, self._validator, self._detailer
                if detailer is None:
                    raise RequestError("These weights have no detail model; install ones that do.")
            context = self._context(generator, tissue, layout.record.description, layout.record.seed)
            for variation in range(1, MAX_DETAILS + 1):
                if len(made) == count:
                    break
                detailed = detailer.checked(
                    layout.pixels(),
                    context,
                    layout.record.seed,
                    validator.predict,
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
        image, xmp = read_image_and_xmp(source)
        native = to_native(image)
        with self._models:
            validator = self._validator
        prediction = validator.predict(native[np.newaxis])[0]
        origin = self.synthetic_origin(image, xmp)
        return Classification(
            image=name,
            tissue=prediction.code,
            label=by_code(prediction.code).label,
            confidence=prediction.confidence,
            top=likeliest(prediction.probabilities),
            probabilities=prediction.probabilities,
            in_distribution=prediction.in_distribution,
            ood_score=prediction.ood_score,
            verdict=_verdict(prediction),
            image_id=origin.image_id if origin is not None and origin.pixels_match else None,
            synthetic_origin=origin,
            model=self.model,
        )

    def synthetic_origin(self, image: Picture, xmp: bytes | None = None) -> SyntheticOrigin | None:
        """How a picture (H, W, 3) of at least 28 px, with the XMP packet of its file, is known to be one of
        ours; None when nothing tells so, which does not say that it is not.
        """
        return synthetic_origin(self.store, image, xmp)

    def evaluate_validator(
        self,
        split: Literal["val", "test"],
        progress: Progress | None = None,
        time_budget: float | None = None,
    ) -> Report:
        """The validator on all of a split, or on as many of its tiles, drawn at random, as are done when
        `time_budget` (seconds) is spent.

        Raises:
            DataError: PathMNIST is not there.
            OutOfTimeError: the time was spent before the first batch was done.
        """
        started = time.monotonic()
        with self._models:
            from pathsynth.data import load_split
            from pathsynth.evaluate import evaluate_validator

            tiles, validator = load_split(split), self._validator
        return evaluate_validator(
            validator, tiles, self.model, progress, deadline=_deadline(started, time_budget)
        )

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

    def evaluate_judge(self, split: Literal["val", "test"], progress: Progress | None = None) -> FullReport:
        """As `evaluate_validator`, of the judge: how far what it says of generated tiles can be trusted.

        Raises:
            DataError: PathMNIST is not there.
            WeightsError: these weights hold no judge.
        """
        from pathsynth.data import load_split
        from pathsynth.evaluate import evaluate_validator

        return evaluate_validator(self._judge, load_split(split), self.model, progress, what="judge")

    def first_tiles(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> "FirstTiles":
        """The first `per_class` tiles of every tissue, none discarded, for `study_generator`."""
        from pathsynth.evaluate import first_tiles

        with self._generating:
            return first_tiles(self._propose_first(check_cancelled), per_class, seed, self.model, progress)

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
            context_of = partial(self._context, self._generator, tissue, description)
            tiles = _made(self._generator, tissue, context_of, seeds)
            return np.stack([to_native(tile) for tile in tiles])

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
        time_budget: float | None = None,
    ) -> Report:
        """Unfiltered first-shot tiles of every tissue, named by the validator, with `judge` by the judge
        too; as many of them as are made when `time_budget` (seconds) is spent.

        Raises:
            OutOfTimeError: the time was spent before every tissue had a tile.
        """
        deadline = _deadline(time.monotonic(), time_budget)
        with self._generating:
            propose = self._propose_first(_between_steps(check_cancelled, deadline))
            with self._models:
                from pathsynth.evaluate import evaluate_generator

                validator, judging = self._validator, self._judge if judge else None
            return evaluate_generator(propose, validator, judging, per_class, seed, self.model, progress)

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
        with self._generating:
            propose = self._propose_first(check_cancelled)
            return evaluate_loop(
                propose, self._validator, judge, per_class, seed, self.model, progress, self._is_near_copy
            )

    def _propose_first(
        self, on_step: Callable[[], None] | None
    ) -> Callable[[Tissue, Sequence[int]], npt.NDArray[np.uint8]]:
        """Proposals for a tissue by its label alone, as every evaluation asks for them."""
        with self._models:
            generator = self._generator

        def propose(tissue: Tissue, seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
            context_of = partial(self._context, generator, tissue, tissue.label)
            return _made(generator, tissue, context_of, seeds, on_step)

        return propose

    def _context(
        self, generator: "Generator | StableDiffusionGenerator", tissue: Tissue, description: str, seed: int
    ) -> "TextContext":
        """Context (1) of the tile with a seed that a request wants."""
        with self._models:
            return generator.context_of(tissue, description, lambda: self._encoder, seed)

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
        from pathsynth.training.hires import HiresTiles, spread_evenly

        detailer = self._detailer
        if detailer is None:
            raise WeightsError("These weights hold no detail model; train one with `pathsynth train detail`.")
        held = HiresTiles(only_held_out=True, progress=progress)
        wanted = held.held_colour.fitting(TILE_EDGE)
        real = wanted.centres(TILE_EDGE, most)
        sources = [wanted.sources[i] for i in spread_evenly(len(wanted), most)]
        images, origin = _layouts(per_class, seed) if tiles is None else (tiles.images, "generator")
        with self._generating:
            with self._models:
                validator, contexts = self._validator, load_contexts(self.weights.path(CONTEXTS_FILE))
            sets = compare(real, sources, detailer, contexts, validator, seed, progress)
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

    def committed_plots(self, name: str) -> list[str]:
        """File names of the pictures (PNG) that ship with a committed report."""
        folder = self.weights_folder / "reports"
        plots = sorted(path.name for path in folder.glob(f"*-{name}.png"))
        return plots + [path.name for path in folder.glob("tiles.png") if name == "generator"]


def likeliest(probabilities: Mapping[str, float]) -> list[Guess]:
    """The three likeliest tissues of calibrated probabilities by code."""
    codes = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:_LIKELIEST]
    return [Guess(tissue=code, label=by_code(code).label, confidence=probabilities[code]) for code in codes]


def _made(
    generator: "Generator | StableDiffusionGenerator",
    tissue: Tissue,
    context_of: Callable[[int], "TextContext"],
    seeds: Sequence[int],
    on_step: Callable[[], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """A tile of a tissue for each seed, from the context (1) of that seed."""
    made = [generator.propose(context_of(seed), [seed], on_step, tissue) for seed in seeds]
    return np.concatenate(made)


def _asked_code(request: GenerationRequest) -> str | None:
    return None if request.tissue is None else request.tissue.strip().upper()


def _deadline(started: float, time_budget: float | None) -> float | None:
    return None if time_budget is None else started + time_budget


def _between_steps(check_cancelled: CheckCancelled | None, deadline: float | None) -> Callable[[], None]:
    """What to do before each denoising step: raise when the caller has gone, or when another step as long as
    the last one would end after `deadline`.
    """
    last: float | None = None

    def check() -> None:
        nonlocal last
        if check_cancelled is not None:
            check_cancelled()
        now = time.monotonic()
        step, last = 0.0 if last is None else now - last, now
        if deadline is not None and now + step >= deadline:
            raise OutOfTimeError("The time was spent before anything could be answered; ask for less.")

    return check


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
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    if kept == request.count:
        tiles = "1 tile" if kept == 1 else f"{kept} tiles"
        return f"{tiles} of {tissue.label} verified in {tries}."
    if kept == 0:
        only = f"No tile of {tissue.label} was verified in {tries}"
    else:
        only = f"Only {kept} of {request.count} tiles of {tissue.label} were verified in {tries}"
    if attempts < request.max_attempts:
        return f"{only} before the time budget ran out; the same request goes on from there."
    return (
        f"{only} before the attempts ran out; try another seed, more attempts, "
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
