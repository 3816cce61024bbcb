"""A `Studio` without models: deterministic tiles and figures, so that tests of tools and server are fast."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pathsynth.errors import PathSynthError
from pathsynth.images import read_image_and_xmp, to_native
from pathsynth.records import (
    AttemptRecord,
    ClassFigures,
    Classification,
    GenerationResult,
    Report,
    TileRecord,
)
from pathsynth.studio import CheckCancelled, GenerationRequest, Progress, Studio
from pathsynth.tissues import CODES, Tissue, by_code

MODEL = "fa4efa4e"
NATIVE = 28


def smooth_tile(seed: int, edge: int = NATIVE) -> npt.NDArray[np.uint8]:
    """A tile, uint8 (edge, edge, 3), that compresses about as a real one."""
    coarse = np.random.default_rng(seed).integers(100, 220, size=(4, 4, 3))
    fine = np.random.default_rng(seed + 1).integers(-16, 16, size=(edge, edge, 3))
    return (np.kron(coarse, np.ones((edge // 4, edge // 4, 1))) + fine).astype(np.uint8)


def noisy_tile(seed: int, edge: int = NATIVE) -> npt.NDArray[np.uint8]:
    """The tile that compresses worst, uint8 (edge, edge, 3)."""
    return np.random.default_rng(seed).integers(0, 256, size=(edge, edge, 3), dtype=np.uint8)


def report(what: Literal["validator", "generator"], n: int = 90, **fields: object) -> Report:
    """A consistent report in which every image was named rightly."""
    support = n // 9
    figures = ClassFigures(precision=1.0, recall=1.0, f1=1.0, support=support)
    values: dict[str, object] = {
        "what": what,
        "headline": "macro_f1",
        "split": "val" if what == "validator" else None,
        "n": n,
        "seed": None if what == "validator" else 0,
        "accuracy": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "macro_f1": 1.0,
        "ci95": (0.96, 1.0),
        "per_class": dict.fromkeys(CODES, figures),
        "confusion": (np.eye(9, dtype=int) * support).tolist(),
        "seconds": 0.1,
        "data": None,
        "model": MODEL,
    }
    return Report.model_validate(values | fields)


def probabilities_of(code: str) -> dict[str, float]:
    """0.95 for `code`, the rest shared by the others."""
    return {each: 0.95 if each == code else 0.00625 for each in CODES}


def _record(description: str, tissue: Tissue, seed: int, image_id: str) -> TileRecord:
    return TileRecord(
        image_id=image_id,
        tissue=tissue.code,
        label=tissue.label,
        description=description,
        confidence=0.95,
        probabilities=probabilities_of(tissue.code),
        verified=True,
        attempts=1,
        seed=seed,
        size=NATIVE,
        model=MODEL,
    )


class FakeStudio(Studio):
    """Answers at once. What it does can be set: which attempts are verified, the tiles, an error to raise,
    and a pause in which it waits, as between two denoising steps, until it is cancelled."""

    def __init__(self, home: Path) -> None:
        super().__init__(home=home)
        self.is_verified: Callable[[int], bool] = lambda attempt: True
        self.tile: Callable[[int], npt.NDArray[np.uint8]] = smooth_tile
        self.error: Exception | None = None
        self.requests: list[GenerationRequest] = []
        self.pauses_before_attempt: int | None = None
        self.paused = threading.Event()
        self.stopped = threading.Event()
        self.progress_steps = 3
        self.data_error: PathSynthError | None = None
        self.committed: dict[str, Report] = {}
        self.sees: str | None = None
        self.asked: list[tuple[object, ...]] = []

    @property
    def model(self) -> str:
        return MODEL

    def _pause(self, check_cancelled: CheckCancelled | None) -> None:
        self.paused.set()
        never = threading.Event()
        try:
            for _ in range(2000):  # 10 s, so that a call that cannot be cancelled fails its test and ends
                never.wait(0.005)
                if check_cancelled is not None:
                    check_cancelled()
        finally:
            self.stopped.set()

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_attempt: Callable[[AttemptRecord, int], None] | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> GenerationResult:
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        tissue = by_code(request.tissue or "TUM")
        tiles: list[TileRecord] = []
        rejected: list[AttemptRecord] = []
        attempt = 0
        while len(tiles) < request.count and attempt < request.max_attempts:
            if attempt == self.pauses_before_attempt:
                self._pause(check_cancelled)
            seed = request.seed + attempt
            attempt += 1
            kept = self.is_verified(attempt)
            seen = AttemptRecord(
                seed=seed, predicted=tissue.code if kept else "STR", confidence=0.95, verified=kept
            )
            if kept:
                stored = self.store.put(self.tile(seed), partial(_record, request.description, tissue, seed))
                tiles.append(stored.record)
            else:
                rejected.append(seen)
            if on_attempt is not None:
                on_attempt(seen, attempt)
        return GenerationResult(
            tissue=tissue.code,
            label=tissue.label,
            description=request.description,
            count=request.count,
            verified=len(tiles) == request.count,
            attempts=attempt,
            seed=request.seed,
            size=request.size,
            min_confidence=request.min_confidence,
            tiles=tiles,
            rejected=rejected,
            message=f"{len(tiles)} of {request.count} tiles verified in {attempt} attempts.",
            seconds=0.0,
            model=MODEL,
        )

    def classify(self, source: Path | bytes, name: str) -> Classification:
        if self.error is not None:
            raise self.error
        image, xmp = read_image_and_xmp(source)
        brightness = float(to_native(image).mean()) / 255
        origin = self.synthetic_origin(image, xmp)
        ours = origin is not None and origin.pixels_match is True
        tissue = by_code(self.sees or (origin.tissue if origin is not None and origin.tissue else "TUM"))
        return Classification(
            image=name,
            tissue=tissue.code,
            label=tissue.label,
            confidence=0.95,
            probabilities=probabilities_of(tissue.code),
            in_distribution=True,
            ood_score=brightness,
            verdict=f"This is {tissue.label}, with confidence 0.95.",
            image_id=origin.image_id if origin is not None and ours else None,
            synthetic_origin=origin,
            model=MODEL,
        )

    def evaluate_validator(self, split: str, progress: Progress | None = None) -> Report:
        if self.data_error is not None:
            raise self.data_error
        self.asked.append(("validator", split))
        self._go_through_batches(progress)
        return report("validator", split=split)

    def evaluate_generator(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        judge: bool = False,
        check_cancelled: CheckCancelled | None = None,
    ) -> Report:
        self.asked.append(("generator", per_class, seed))
        self._go_through_batches(progress)
        if self.pauses_before_attempt is not None:
            self._pause(check_cancelled)
        return report("generator", n=9 * per_class, seed=seed)

    def _go_through_batches(self, progress: Progress | None) -> None:
        for step in range(1, self.progress_steps + 1):
            if progress is not None:
                progress(step, self.progress_steps, f"Batch {step}")

    def committed_report(self, name: str) -> Report:
        if self.error is not None:
            raise self.error
        return self.committed[name]
