"""Evaluation on scikit-learn and torchmetrics: every figure with its sample size, split, seed and model
hash.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_calibration_error

from pathsynth.data import Split
from pathsynth.records import MAX_SEED, ClassFigures, Report
from pathsynth.tissues import CODES, TISSUES, Tissue
from pathsynth.validator import Validator
from pathsynth.verify import IsNearCopy, LoopRequest, verified_tiles

Labels = npt.NDArray[np.int64]
Propose = Callable[[Tissue, Sequence[int]], npt.NDArray[np.uint8]]
Progress = Callable[[int, int, str], None]
BATCH = 25
BOOTSTRAP_SAMPLES = 1000
LOOP_CONFIDENCE = 0.9
LOOP_ATTEMPTS_PER_TILE = 30
_ALL = list(range(len(TISSUES)))


def macro_f1(true: Labels, named: Labels) -> float:
    """Mean F1 over the nine tissues."""
    return float(f1_score(true, named, labels=_ALL, average="macro", zero_division=0))


def bootstrap_interval(
    true: Labels, named: Labels, figure: Callable[[Labels, Labels], float], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a figure by the percentile bootstrap over images (Efron, 1979), 1,000 samples."""
    random = np.random.default_rng(seed)
    values = []
    for _ in range(BOOTSTRAP_SAMPLES):
        drawn = random.integers(len(true), size=len(true))
        values.append(figure(true[drawn], named[drawn]))
    low, high = np.quantile(values, (0.025, 0.975))
    return round(float(low), 6), round(float(high), 6)


def accuracy(true: Labels, named: Labels) -> float:
    """Share of images named rightly."""
    return float(accuracy_score(true, named))


def _figures(true: Labels, named: Labels) -> dict[str, object]:
    precision, recall, f1, support = precision_recall_fscore_support(
        true, named, labels=_ALL, zero_division=0
    )
    return {
        "n": len(true),
        "accuracy": accuracy(true, named),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "per_class": {
            code: ClassFigures(
                precision=float(precision[i]),
                recall=float(recall[i]),
                f1=float(f1[i]),
                support=int(support[i]),
            )
            for i, code in enumerate(CODES)
        },
        "confusion": confusion_matrix(true, named, labels=_ALL).tolist(),
    }


def evaluate_validator(
    validator: Validator, split: Split, model: str, progress: Progress | None = None
) -> Report:
    """The validator on every tile of a split; headline accuracy, calibration as expected calibration error
    (15 bins).
    """
    started = time.monotonic()

    def on_batch(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, f"{done:,} of {total:,} tiles of {split.name}")

    probabilities = validator.probabilities(split.images, on_batch)
    named = probabilities.argmax(1).numpy()
    ece = multiclass_calibration_error(
        probabilities, torch.from_numpy(split.labels), num_classes=len(TISSUES), n_bins=15, norm="l1"
    )
    return Report.model_validate(
        _figures(split.labels, named)
        | {
            "what": "validator",
            "headline": "accuracy",
            "split": split.name,
            "seed": None,
            "ci95": bootstrap_interval(split.labels, named, accuracy),
            "ece": float(ece),
            "seconds": round(time.monotonic() - started, 2),
            "data": split.sha256,
            "model": model,
        }
    )


def _named(classifier: Validator, tiles: npt.NDArray[np.uint8]) -> Labels:
    return classifier.probabilities(tiles).argmax(1).numpy()


def evaluate_generator(
    propose: Propose,
    validator: Validator,
    judge: Validator | None,
    per_class: int,
    seed: int,
    model: str,
    progress: Progress | None = None,
) -> Report:
    """First-shot tiles, none discarded: `per_class` of every tissue with seeds from `seed` on, named by the
    validator.
    """
    started = time.monotonic()
    asked: list[int] = []
    named: list[Labels] = []
    judged: list[Labels] = []
    total = per_class * len(TISSUES)
    for tissue in TISSUES:
        for first in range(0, per_class, BATCH):
            if progress is not None:
                progress(len(asked), total, f"{tissue.label}: {len(asked)} of {total} tiles")
            last = min(first + BATCH, per_class)
            seeds = [(seed + tissue.index * per_class + i) % (MAX_SEED + 1) for i in range(first, last)]
            tiles = propose(tissue, seeds)
            asked += [tissue.index] * len(tiles)
            named.append(_named(validator, tiles))
            if judge is not None:
                judged.append(_named(judge, tiles))
    true, seen = np.array(asked, dtype=np.int64), np.concatenate(named)
    return Report.model_validate(
        _figures(true, seen)
        | {
            "what": "generator",
            "headline": "macro_f1",
            "split": None,
            "seed": seed,
            "ci95": bootstrap_interval(true, seen, macro_f1),
            "macro_f1_judge": macro_f1(true, np.concatenate(judged)) if judged else None,
            "seconds": round(time.monotonic() - started, 2),
            "data": None,
            "model": model,
        }
    )


def evaluate_loop(
    propose: Propose,
    validator: Validator,
    judge: Validator,
    per_class: int,
    seed: int,
    model: str,
    progress: Progress | None = None,
    is_near_copy: IsNearCopy | None = None,
) -> Report:
    """Tiles that the loop accepted, named by the judge: every figure of the report is the judge's."""
    started = time.monotonic()
    asked: list[int] = []
    judged: list[Labels] = []
    attempts = 0
    total = per_class * len(TISSUES)
    for tissue in TISSUES:
        request = LoopRequest(
            tissue,
            per_class,
            (seed + tissue.index * per_class * LOOP_ATTEMPTS_PER_TILE) % (MAX_SEED + 1),
            LOOP_CONFIDENCE,
            per_class * LOOP_ATTEMPTS_PER_TILE,
        )
        kept = []
        attempted = verified_tiles(request, partial(propose, tissue), validator.predict, is_near_copy)
        for attempt in attempted:
            attempts += 1
            if attempt.verified:
                kept.append(attempt.tile)
                if progress is not None:
                    progress(len(asked) + len(kept), total, f"{tissue.label}: {len(kept)} accepted")
        if kept:
            asked += [tissue.index] * len(kept)
            judged.append(_named(judge, np.stack(kept)))
    true, seen = np.array(asked, dtype=np.int64), np.concatenate(judged)
    figure = macro_f1(true, seen)
    return Report.model_validate(
        _figures(true, seen)
        | {
            "what": "loop",
            "headline": "macro_f1_judge",
            "split": None,
            "seed": seed,
            "ci95": bootstrap_interval(true, seen, macro_f1),
            "macro_f1_judge": figure,
            "mean_attempts": attempts / len(true),
            "seconds": round(time.monotonic() - started, 2),
            "data": None,
            "model": model,
        }
    )
