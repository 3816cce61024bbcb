"""Evaluation on scikit-learn and torchmetrics: every figure with its sample size, split, seed and model
hash.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_calibration_error

from pathsynth.calibration import cross_fitted
from pathsynth.data import Split
from pathsynth.errors import OutOfTimeError, RequestError
from pathsynth.images import to_native
from pathsynth.progress import Progress
from pathsynth.records import (
    MAX_SEED,
    ClassFigures,
    CrossFitted,
    FullReport,
    Reliability,
    ReliabilityBin,
    Report,
    Selective,
    SelectivePoint,
)
from pathsynth.tissues import CODES, TISSUES, Tissue
from pathsynth.validator import Validator
from pathsynth.verify import IsNearCopy, LoopRequest, verified_tiles

if TYPE_CHECKING:
    from pathsynth.fidelity import ProposeDescribed

Labels = npt.NDArray[np.int64]
Propose = Callable[[Tissue, Sequence[int]], npt.NDArray[np.uint8]]
BATCH = 64
BOOTSTRAP_SAMPLES = 1000
LOOP_CONFIDENCE = 0.9
LOOP_ATTEMPTS_PER_TILE = 30
CALIBRATION_BINS = 15
CALIBRATED_ON = "val"
ANSWERED_SHARES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
FIDELITY_PER_CLASS = 20
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


def reliability_bins(
    probabilities: torch.Tensor, labels: Labels, bins: int = CALIBRATION_BINS
) -> list[ReliabilityBin]:
    """The reliability diagram of probabilities (N, 9) against labels (N,): `bins` bins of equal width."""
    best = probabilities.max(1)
    confidence = best.values.double().numpy()
    right = best.indices.numpy() == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    result = []
    for i in range(bins):
        mine = place == i
        result.append(
            ReliabilityBin(
                low=float(edges[i]),
                high=float(edges[i + 1]),
                n=int(mine.sum()),
                confidence=float(confidence[mine].mean()) if mine.any() else None,
                accuracy=float(right[mine].mean()) if mine.any() else None,
            )
        )
    return result


def expected_calibration_error(probabilities: torch.Tensor, labels: Labels) -> float:
    """Mean gap between confidence and accuracy of probabilities (N, 9) against labels (N,), over 15 bins."""
    error = multiclass_calibration_error(
        probabilities,
        torch.from_numpy(labels),
        num_classes=len(TISSUES),
        n_bins=CALIBRATION_BINS,
        norm="l1",
    )
    return float(error)


def selective_curve(
    probabilities: torch.Tensor, labels: Labels, shares: Sequence[float] = ANSWERED_SHARES
) -> list[SelectivePoint]:
    """Accuracy over the surest `shares` of the images, from probabilities (N, 9) and labels (N,)."""
    best = probabilities.max(1)
    confidence = best.values.double().numpy()
    order = np.argsort(-confidence, kind="stable")
    right = (best.indices.numpy() == labels)[order]
    points = []
    for share in shares:
        count = max(1, round(share * len(labels)))
        points.append(
            SelectivePoint(
                coverage=count / len(labels),
                confidence=float(confidence[order[count - 1]]),
                accuracy=float(right[:count].mean()),
            )
        )
    return points


def evaluate_validator(
    validator: Validator,
    split: Split,
    model: str,
    progress: Progress | None = None,
    *,
    what: Literal["validator", "judge"] = "validator",
    train: Split | None = None,
    seed: int = 0,
    deadline: float | None = None,
) -> FullReport:
    """A classifier, `what` says which, on every tile of a split; headline accuracy, calibration as expected
    calibration error (15 bins), reliability diagram and selective accuracy. Of val, which calibration is
    fitted on, also accuracy and calibration error where each tenth is calibrated on the other nine.

    With `deadline`, a time of `time.monotonic`, the tiles come in an order drawn by `seed`, and the report is
    of those that were named by then.

    With `train`, also what colour alone achieves (fitted on `train`), the accuracy on disturbed tiles, and
    how well images that are no such tiles are told apart; `seed` draws what these need.
    """
    started, total = time.monotonic(), len(split)
    order = np.arange(total) if deadline is None else np.random.default_rng(seed).permutation(total)
    parts: list[torch.Tensor] = []
    last = started
    for first in range(0, total, BATCH):
        now = time.monotonic()
        if deadline is not None and now + (now - last) >= deadline:
            break  # another batch as long as the last one would end too late
        last = now
        if progress is not None:
            progress(first, total, f"{first:,} of {total:,} tiles of {split.name}")
        parts.append(validator.logits(split.images[order[first : first + BATCH]]))
    if not parts:
        raise OutOfTimeError(
            "The time was spent before the first tile was named; `pathsynth evaluate` has no limit."
        )
    logits = torch.cat(parts)
    measured = order[: len(logits)]
    logits, labels = logits[np.argsort(measured)], split.labels[np.sort(measured)]
    probabilities = logits.softmax(1)
    named = probabilities.argmax(1).numpy()
    further: dict[str, object] = {}
    if split.name == CALIBRATED_ON and len(logits) == total:
        held_out = cross_fitted(logits.clone(), torch.from_numpy(labels)).softmax(1)
        further["cross_fitted"] = CrossFitted(
            split=split.name,
            n=len(labels),
            model=model,
            accuracy=accuracy(labels, held_out.argmax(1).numpy()),
            ece=expected_calibration_error(held_out, labels),
        )
    if train is not None:
        from pathsynth.baselines import baseline_accuracies
        from pathsynth.robustness import outside, stress

        further |= {
            "baselines": baseline_accuracies(train, split, seed, progress),
            "outside": outside(validator, split, seed, model, progress),
            "stress": stress(validator, split, named, seed, model, progress),
        }
    return FullReport.model_validate(
        _figures(labels, named)
        | {
            "what": what,
            "headline": "accuracy",
            "split": split.name,
            "seed": None,
            "ci95": bootstrap_interval(labels, named, accuracy),
            "ece": expected_calibration_error(probabilities, labels),
            "reliability": Reliability(
                split=split.name,
                n=len(labels),
                model=model,
                bins=reliability_bins(probabilities, labels),
            ),
            "selective": Selective(
                split=split.name,
                n=len(labels),
                model=model,
                points=selective_curve(probabilities, labels),
            ),
            "seconds": round(time.monotonic() - started, 2),
            "data": split.sha256,
            "model": model,
        }
        | further
    )


def _named(
    classifier: Validator, tiles: npt.NDArray[np.uint8], progress: Progress | None = None, who: str = ""
) -> Labels:
    def on_batch(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, f"{who} names {total:,} tiles")

    return classifier.probabilities(tiles, on_batch).argmax(1).numpy()


@dataclass(frozen=True)
class FirstTiles:
    """First-shot tiles, none discarded: uint8 (N, 28, 28, 3), the tissues asked for (N,), and where they came
    from.
    """

    images: npt.NDArray[np.uint8]
    asked: Labels
    seed: int
    model: str

    def save(self, path: Path) -> None:
        """Write one `.npz` file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_name(f"{path.name}.partial")
        with partial_path.open("wb") as file:
            np.savez_compressed(
                file, images=self.images, asked=self.asked, seed=self.seed, model=np.array(self.model)
            )
        partial_path.replace(path)

    @classmethod
    def load(
        cls, path: Path, per_class: int, seed: int, model: str, same: Callable[[str], bool] | None = None
    ) -> "FirstTiles":
        """Read a file written by `save`, as tiles of the weights `model`. `same` says of other weights
        whether they make the same tiles as these.

        Raises:
            RequestError: it is no such file, or holds tiles of other weights, another seed or another number.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                tiles = cls(archive["images"], archive["asked"], int(archive["seed"]), str(archive["model"]))
        except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
            raise RequestError(f"{path} holds no tiles of an earlier run; name another file.") from error
        asked = (tiles.seed, len(tiles.images)) == (seed, per_class * len(TISSUES))
        if not asked or not (tiles.model == model or (same is not None and same(tiles.model))):
            raise RequestError(
                f"{path} holds {len(tiles.images)} tiles of weights {tiles.model} from seed {tiles.seed}, "
                "not what is asked for; delete it or name another file."
            )
        return replace(tiles, model=model)


def first_tiles(
    propose: Propose, per_class: int, seed: int, model: str, progress: Progress | None = None
) -> FirstTiles:
    """`per_class` tiles of every tissue with seeds from `seed` on, none discarded, scaled to 28 px.

    One of each tissue is made after the other. When `propose` raises OutOfTimeError, the tiles are those made
    before, all of them if every tissue has one. The arrays hold one tissue after the other.

    Raises:
        OutOfTimeError: the time was spent before every tissue had a tile.
    """
    asked: list[int] = []
    made: list[npt.NDArray[np.uint8]] = []
    total = per_class * len(TISSUES)
    try:
        for i in range(per_class):
            for tissue in TISSUES:
                if progress is not None:
                    progress(len(made), total, f"{tissue.label}: {len(made)} of {total} tiles")
                (tile,) = propose(tissue, [(seed + tissue.index * per_class + i) % (MAX_SEED + 1)])
                made.append(to_native(tile))
                asked.append(tissue.index)
    except OutOfTimeError:
        if len(made) < len(TISSUES):
            raise
    order = np.argsort(asked, kind="stable")
    return FirstTiles(np.stack(made)[order], np.array(asked, dtype=np.int64)[order], seed, model)


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
    validator; as many as `first_tiles` makes.
    """
    started = time.monotonic()
    made = first_tiles(propose, per_class, seed, model, progress)
    report = report_on_tiles(made, validator, judge, progress)
    return report.model_copy(update={"seconds": round(time.monotonic() - started, 2)})


def report_on_tiles(
    made: FirstTiles, validator: Validator, judge: Validator | None, progress: Progress | None = None
) -> Report:
    """First-shot tiles made before, named by the validator, and by the judge when there is one."""
    started = time.monotonic()
    seen = _named(validator, made.images, progress, "The validator")
    judged = None if judge is None else _named(judge, made.images, progress, "The judge")
    return Report.model_validate(
        _figures(made.asked, seen)
        | {
            "what": "generator",
            "headline": "macro_f1",
            "split": None,
            "seed": made.seed,
            "ci95": bootstrap_interval(made.asked, seen, macro_f1),
            "macro_f1_judge": None if judged is None else macro_f1(made.asked, judged),
            "seconds": round(time.monotonic() - started, 2),
            "data": None,
            "model": made.model,
        }
    )


@dataclass(frozen=True)
class RealTiles:
    """The splits that generated tiles are compared with."""

    train: Split
    val: Split
    test: Split


def further_generator_figures(
    report: Report,
    tiles: FirstTiles,
    real: RealTiles,
    validator: Validator,
    judge: Validator | None,
    propose_described: "ProposeDescribed",
    progress: Progress | None = None,
    kept: Mapping[str, object] | None = None,
) -> FullReport:
    """The report with everything that compares first-shot tiles with real ones: realism in two named feature
    spaces, structure, real-or-generated, memorisation, classification accuracy score and prompt fidelity.

    Without a judge its place is taken, by name, by the validator. Realism, structure and memorisation are
    against val; the classification accuracy score is on test. Those in `kept` are not measured again.

    Raises:
        RequestError: there are fewer than 10 tiles of a tissue.
    """
    from pathsynth.fidelity import fidelity
    from pathsynth.probes import real_or_generated, transfer
    from pathsynth.realism import Sets, classifier_space, imagenet_space, memorisation, realism, structure

    started = time.monotonic()
    seed, model, val = tiles.seed, tiles.model, real.val
    sets = Sets.draw(tiles.images, tiles.asked, val, seed)
    own = (
        classifier_space(judge, "judge")
        if judge is not None
        else classifier_space(validator, "validator, for want of a judge")
    )
    spaces = [own, *([imagenet] if (imagenet := imagenet_space()) is not None else [])]
    architecture = "regnet_y_400mf" if judge is None else judge.architecture
    measures: dict[str, Callable[[], object]] = {
        "structure": lambda: structure(sets, val, seed, model, progress),
        "realism": lambda: [realism(sets, space, val, seed, model, progress) for space in spaces],
        "real_or_generated": lambda: real_or_generated(sets, val.name, seed, model, progress),
        "memorisation": lambda: [
            memorisation(tiles.images, tiles.asked, real.train, val, space, seed, model, progress)
            for space in (None, own)
        ],
        "transfer": lambda: transfer(
            tiles.images, tiles.asked, real.train, real.test, architecture, seed, model, progress
        ),
        "fidelity": lambda: fidelity(propose_described, val, FIDELITY_PER_CLASS, seed, model, progress),
    }
    known = kept or {}
    further = {name: known[name] if name in known else measure() for name, measure in measures.items()}
    if judge is not None:
        further["per_class_judge"] = _figures(
            tiles.asked, _named(judge, tiles.images, progress, "The judge")
        )["per_class"]
    seconds = round(report.seconds + time.monotonic() - started, 2)
    return FullReport.model_validate(report.model_dump() | further | {"seconds": seconds})


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
    attempts = dict.fromkeys(CODES, 0)
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
            attempts[tissue.code] += 1
            if attempt.verified:
                kept.append(attempt.tile)
            if progress is not None:
                message = f"{tissue.label}: {len(kept)} accepted of {attempts[tissue.code]}"
                progress(len(asked) + len(kept), total, message)
        if kept:
            asked += [tissue.index] * len(kept)
            judged.append(_named(judge, np.stack(kept)))
    if not judged:
        raise RequestError(
            f"The loop accepted none of {sum(attempts.values())} tiles, so there is nothing to measure; "
            "evaluate the generator instead."
        )
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
            "mean_attempts": sum(attempts.values()) / len(true),
            "attempts": attempts,
            "seconds": round(time.monotonic() - started, 2),
            "data": None,
            "model": model,
        }
    )
