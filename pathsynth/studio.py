"""The facade behind every command and tool: models, loop, image store and what is measured of them.

Importing this module and creating a `Studio` loads no model and imports no torch, so a server can answer its
handshake first.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pathsynth.errors import OutOfTimeError, RequestError, StoreError
from pathsynth.evaluations import Evaluations
from pathsynth.history import Remembered, RequestHistory
from pathsynth.images import Picture, read_image_and_xmp, to_native
from pathsynth.models import made
from pathsynth.origin import synthetic_origin
from pathsynth.progress import CheckCancelled, between_steps, deadline_after
from pathsynth.records import (
    MAX_ATTEMPTS,
    MAX_COUNT,
    MAX_DESCRIPTION,
    MAX_SEED,
    AttemptRecord,
    Classification,
    GenerationResult,
    Guess,
    SyntheticOrigin,
    TileRecord,
)
from pathsynth.store import ImageStore
from pathsynth.tissues import Tissue, by_code, named_tissue

if TYPE_CHECKING:
    from pathsynth.text import TextContext, TissueResolver
    from pathsynth.verify import Attempt, Detailed, Prediction

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


class Studio(Evaluations):
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
        super().__init__(weights, base, lora)
        self._store = ImageStore(home)

    @property
    def store(self) -> ImageStore:
        """Where delivered tiles are kept."""
        return self._store

    @property
    def history(self) -> RequestHistory:
        """What was asked before, beside the image store."""
        return RequestHistory(self.store.root)

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
        with self._loading:
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

        deadline = deadline_after(time.monotonic(), request.time_budget)
        known = self.recall(request)
        if known is not None and not known.can_continue:
            return known
        tissue = self.resolve(request.description, request.tissue if known is None else known.tissue)
        request_id = self.request_id(request)
        with self._generating:
            started = time.monotonic()
            with self._loading:
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

            @lru_cache(maxsize=generator.at_once)  # layout and detail of a tile have the same text
            def context_of(seed: int) -> "TextContext":
                return self._context(generator, tissue, request.description, seed)

            def propose(seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
                between = between_steps(check_cancelled, deadline)
                return made(generator, tissue, context_of, seeds, between)

            predict = validator.predict

            def add_detail(tile: npt.NDArray[np.uint8], seed: int) -> "Detailed | None":
                if detailer is None:
                    return None
                between = between_steps(check_cancelled, deadline)
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
                for attempt in verified_tiles(
                    loop, propose, predict, is_near_copy, add_detail=detail, at_once=generator.at_once
                ):
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
            with self._loading:
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
        with self._loading:
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


def likeliest(probabilities: Mapping[str, float]) -> list[Guess]:
    """The three likeliest tissues of calibrated probabilities by code."""
    codes = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:_LIKELIEST]
    return [Guess(tissue=code, label=by_code(code).label, confidence=probabilities[code]) for code in codes]


def _asked_code(request: GenerationRequest) -> str | None:
    return None if request.tissue is None else request.tissue.strip().upper()


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
