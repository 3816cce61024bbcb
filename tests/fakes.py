"""A `Studio` without models: deterministic tiles and figures, so that tests of tools and server are fast."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pathsynth.data import COUNTS
from pathsynth.errors import PathSynthError
from pathsynth.images import read_image_and_xmp, to_native
from pathsynth.progress import CheckCancelled, Progress
from pathsynth.records import (
    MAX_SEED,
    AttemptRecord,
    ClassFigures,
    Classification,
    FullReport,
    GenerationResult,
    Report,
)
from pathsynth.studio import GenerationRequest, Studio, likeliest
from pathsynth.tissues import CODES, Tissue, by_code
from pathsynth.verify import Prediction

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


def report(what: Literal["validator", "judge", "generator"], n: int = 90, **fields: object) -> Report:
    """A consistent report in which every image was named rightly."""
    support = n // 9
    figures = ClassFigures(precision=1.0, recall=1.0, f1=1.0, support=support)
    values: dict[str, object] = {
        "what": what,
        "headline": "macro_f1",
        "split": None if what == "generator" else "val",
        "n": n,
        "seed": 0 if what == "generator" else None,
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


class FakeGenerator:
    """Proposes `tile(seed)` at once, after `STEPS` denoising steps that do nothing."""

    STEPS = 3
    at_once = 1

    def __init__(self, studio: "FakeStudio") -> None:
        self._studio = studio

    def context_of(self, tissue: Tissue, description: str, encoder: object, seed: int) -> None:
        """Nothing is conditioned."""

    def propose(
        self,
        context: None,
        seeds: Sequence[int],
        on_step: Callable[[], None] | None = None,
        tissue: Tissue | None = None,
    ) -> npt.NDArray[np.uint8]:
        (seed,) = seeds
        if self._studio.attempt_of(seed) - 1 == self._studio.pauses_before_attempt:
            self._studio.pause(on_step)
        for _ in range(self.STEPS):
            self._studio.on_step()
            if on_step is not None:
                on_step()
        self._studio.proposed.append(seed)
        return self._studio.tile(seed)[np.newaxis]


class FakeValidator:
    """Agrees with every attempt that is to be verified."""

    def __init__(self, studio: "FakeStudio") -> None:
        self._studio = studio

    def predict(self, tiles: npt.NDArray[np.uint8]) -> list[Prediction]:
        asked = by_code(self._studio.request.tissue or "TUM").code
        other = "STR" if asked != "STR" else "MUS"
        code = (
            asked if self._studio.is_verified(self._studio.attempt_of(self._studio.proposed[-1])) else other
        )
        return [Prediction(code, 0.95, probabilities_of(code), 0.1)]


class FakeStudio(Studio):
    """Answers at once. What it does can be set: which attempts are verified, the tiles, an error to raise,
    and a pause in which it waits, as between two denoising steps, until it is cancelled."""

    def __init__(self, home: Path) -> None:
        super().__init__(home=home)
        self.is_verified: Callable[[int], bool] = lambda attempt: True
        self.tile: Callable[[int], npt.NDArray[np.uint8]] = smooth_tile
        self.error: Exception | None = None
        self.requests: list[GenerationRequest] = []
        self.proposed: list[int] = []
        self.on_step: Callable[[], None] = lambda: None
        self.pauses_before_attempt: int | None = None
        self.paused = threading.Event()
        self.stopped = threading.Event()
        self.progress_steps = 3
        self.data_error: PathSynthError | None = None
        self.committed: dict[str, Report] = {}
        self.sees: str | None = None
        self.measures: int | None = None
        self.time_budgets: list[float | None] = []
        self.asked: list[tuple[object, ...]] = []

    @property
    def model(self) -> str:
        return MODEL

    @property
    def _generator(self) -> Any:
        return FakeGenerator(self)

    @property
    def _validator(self) -> Any:
        return FakeValidator(self)

    @property
    def _is_near_copy(self) -> None:
        return None

    @property
    def _detailer(self) -> None:
        """Tiles stay at 28 px, whatever detail model the committed weights have."""
        return None

    @property
    def request(self) -> GenerationRequest:
        """What is generated at the moment; one request at a time is."""
        return self.requests[-1]

    def attempt_of(self, seed: int) -> int:
        """Which attempt of the present request has this seed, from 1 on."""
        return (seed - self.request.seed) % (MAX_SEED + 1) + 1

    def pause(self, check_cancelled: CheckCancelled | None) -> None:
        """Wait, as between two denoising steps, until the call is cancelled."""
        self.paused.set()
        never = threading.Event()
        try:
            for _ in range(2000):  # 10 s, so that a call that cannot be cancelled fails its test and ends
                never.wait(0.005)
                if check_cancelled is not None:
                    check_cancelled()
        finally:
            self.stopped.set()

    def resolve(self, description: str, tissue: str | None) -> Tissue:
        return by_code(tissue or "TUM")

    def generate(
        self,
        request: GenerationRequest,
        *,
        on_attempt: Callable[[AttemptRecord, int], None] | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> GenerationResult:
        """The real loop, history and store over tiles and answers that are made up."""
        if self.error is not None:
            raise self.error
        with self._generating:
            self.requests.append(request)
            return super().generate(request, on_attempt=on_attempt, check_cancelled=check_cancelled)

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
            top=likeliest(probabilities_of(tissue.code)),
            probabilities=probabilities_of(tissue.code),
            in_distribution=True,
            ood_score=brightness,
            verdict=f"This is {tissue.label}, with confidence 0.95.",
            image_id=origin.image_id if origin is not None and ours else None,
            synthetic_origin=origin,
            model=MODEL,
        )

    def evaluate_validator(
        self,
        split: Literal["val", "test"],
        progress: Progress | None = None,
        time_budget: float | None = None,
    ) -> Report:
        if self.data_error is not None:
            raise self.data_error
        self.asked.append(("validator", split))
        self._go_through_batches(progress)
        if self.measures is not None:
            return report("validator", n=self.measures, split=split)
        return report("validator", n=COUNTS[split], split=split)

    def evaluate_judge(self, split: Literal["val", "test"], progress: Progress | None = None) -> FullReport:
        self.asked.append(("judge", split))
        return FullReport.model_validate(report("judge", split=split).model_dump())

    def evaluate_generator(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        judge: bool = False,
        check_cancelled: CheckCancelled | None = None,
        time_budget: float | None = None,
    ) -> Report:
        self.asked.append(("generator", per_class, seed))
        self.time_budgets.append(time_budget)
        self._go_through_batches(progress)
        if self.pauses_before_attempt is not None:
            self.pause(check_cancelled)
        return report("generator", n=self.measures or 9 * per_class, seed=seed)

    def _go_through_batches(self, progress: Progress | None) -> None:
        for step in range(1, self.progress_steps + 1):
            if progress is not None:
                progress(step, self.progress_steps, f"Batch {step}")

    def committed_report(self, name: str) -> Report:
        if self.error is not None:
            raise self.error
        return self.committed[name]
