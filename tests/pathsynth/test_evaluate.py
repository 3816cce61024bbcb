"""Figures, against classifiers whose mistakes are known."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from pathsynth import evaluate
from pathsynth.data import Split
from pathsynth.errors import OutOfTimeError
from pathsynth.evaluate import (
    accuracy,
    bootstrap_interval,
    evaluate_generator,
    evaluate_loop,
    evaluate_validator,
    first_tiles,
    macro_f1,
)
from pathsynth.records import MAX_SEED
from pathsynth.tissues import CODES, TISSUES, Tissue
from pathsynth.validator import Validator
from pathsynth.verify import Prediction

Tiles = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Told(Validator):
    """Names the tissue that stands in the first pixel of a tile, after `mistake` has changed it."""

    def __init__(self, mistake: Callable[[int], int] = lambda index: index, confidence: float = 0.92) -> None:
        super().__init__(nn.Identity(), "resnet18", 1.0, torch.zeros(9, 1), torch.eye(1), 1.0)
        self.mistake, self.confidence = mistake, confidence

    def logits(self, tiles: Tiles, on_batch: Callable[[int, int], None] | None = None) -> torch.Tensor:
        if on_batch is not None:
            on_batch(0, len(tiles))
        result = torch.full((len(tiles), 9), (1 - self.confidence) / 8)
        for row, tile in zip(result, tiles, strict=True):
            row[self.mistake(int(tile[0, 0, 0]))] = self.confidence
        return result.log()

    def predict(self, tiles: Tiles) -> list[Prediction]:
        result = []
        for row in self.probabilities(tiles).tolist():
            probabilities = dict(zip(CODES, row, strict=True))
            best = max(CODES, key=probabilities.__getitem__)
            result.append(Prediction(best, probabilities[best], probabilities, 0.1))
        return result


def painted(indices: Sequence[int]) -> Tiles:
    tiles = np.zeros((len(indices), 28, 28, 3), dtype=np.uint8)
    tiles[:, 0, 0, 0] = indices
    return tiles


def split(per_class: int = 10) -> Split:
    labels = np.repeat(np.arange(9, dtype=np.int64), per_class)
    return Split("val", painted(labels.tolist()), labels)


def propose(tissue: Tissue, seeds: Sequence[int]) -> Tiles:
    return painted([tissue.index] * len(seeds))


def first_as_last(index: int) -> int:
    """Every tile of the first tissue is named as the last."""
    return 8 if index == 0 else index


def test_macro_f1_is_the_mean_over_all_nine_also_when_some_are_absent() -> None:
    true, named = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert macro_f1(true, named) == pytest.approx((2 / 3 + 4 / 5) / 9)
    everything = np.arange(9)
    assert macro_f1(everything, everything) == 1
    assert macro_f1(everything, np.roll(everything, 1)) == 0
    random = np.random.default_rng(0)
    true, named = random.integers(9, size=500), random.integers(9, size=500)
    assert macro_f1(true, named) == pytest.approx(f1_score(true, named, average="macro"))


def test_the_interval_holds_the_figure_is_repeatable_and_narrows_with_more_images() -> None:
    random = np.random.default_rng(0)

    def sample(size: int) -> tuple[Labels, Labels]:
        true = random.integers(9, size=size)
        return true, np.where(random.random(size) < 0.8, true, (true + 1) % 9)

    true, named = sample(2000)
    low, high = bootstrap_interval(true, named, accuracy)
    assert low < accuracy(true, named) < high
    assert (low, high) == bootstrap_interval(true, named, accuracy)
    # Of a share the normal approximation is known: 1.96 standard errors to each side.
    share = accuracy(true, named)
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / 2000)
    assert high - low == pytest.approx(expected, rel=0.15)
    few_low, few_high = bootstrap_interval(*sample(100), accuracy)
    assert few_high - few_low > 2 * (high - low)


def test_the_interval_of_a_perfect_classifier_is_one_point() -> None:
    true = np.arange(90) % 9
    assert bootstrap_interval(true, true, accuracy) == (1, 1)


@pytest.mark.usefixtures("few_samples")
def test_out_of_time_the_validator_is_measured_on_a_random_part_of_the_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "BATCH", 20)
    told: list[int] = []

    def stop_after_two(done: int, total: int, message: str) -> None:
        told.append(done)
        if done == 20:
            monkeypatch.setattr("time.monotonic", lambda: 2e9)

    report = evaluate_validator(Told(), split(), "a model", stop_after_two, deadline=1e9)
    assert (report.n, told) == (40, [0, 20])
    assert report.cross_fitted is None
    support = [report.per_class[code].support for code in CODES]
    assert sum(support) == 40
    assert min(support) > 0  # the split comes tissue by tissue; the part does not


@pytest.mark.usefixtures("few_samples")
def test_a_deadline_that_suffices_changes_nothing() -> None:
    named = Told(first_as_last)
    without = evaluate_validator(named, split(), "a model")
    within = evaluate_validator(named, split(), "a model", deadline=math.inf)
    assert within.model_dump(exclude={"seconds"}) == without.model_dump(exclude={"seconds"})


def test_out_of_time_before_the_first_batch_is_said() -> None:
    with pytest.raises(OutOfTimeError):
        evaluate_validator(Told(), split(), "a model", deadline=0.0)


@pytest.mark.parametrize("made", [9, 13, 20])
def test_out_of_time_the_first_tiles_are_those_made_by_then(made: int) -> None:
    counted = iter(range(100))

    def propose_until(tissue: Tissue, seeds: Sequence[int]) -> Tiles:
        if next(counted) == made:
            raise OutOfTimeError("The time is spent.")
        return propose(tissue, seeds)

    tiles = first_tiles(propose_until, 5, 0, "a model")
    assert len(tiles.images) == made
    assert set(tiles.asked.tolist()) == set(range(9))
    assert (tiles.images[:, 0, 0, 0] == tiles.asked).all()
    assert (np.diff(tiles.asked) >= 0).all()


def test_out_of_time_before_every_tissue_has_a_tile_is_said() -> None:
    def too_slow(tissue: Tissue, seeds: Sequence[int]) -> Tiles:
        raise OutOfTimeError("The time is spent.")

    with pytest.raises(OutOfTimeError):
        first_tiles(too_slow, 5, 0, "a model")


@pytest.mark.usefixtures("few_samples")
def test_rows_of_the_confusion_are_true_and_columns_are_named() -> None:
    report = evaluate_validator(Told(first_as_last), split(), "a model")
    confusion = np.array(report.confusion)
    assert confusion[0].tolist() == [0] * 8 + [10]
    assert confusion[8].tolist() == [0] * 8 + [10]
    assert np.diag(confusion)[1:].tolist() == [10] * 8
    assert confusion.sum(axis=1).tolist() == [report.per_class[code].support for code in CODES]


def test_figures_of_a_tissue_are_its_own() -> None:
    report = evaluate_validator(Told(first_as_last), split(), "a model")
    missed, taken = report.per_class[CODES[0]], report.per_class[CODES[8]]
    assert (missed.precision, missed.recall, missed.f1) == (0, 0, 0)
    assert (taken.precision, taken.recall) == (0.5, 1)
    assert taken.f1 == pytest.approx(2 / 3)
    assert report.accuracy == pytest.approx(8 / 9)
    assert report.recall == pytest.approx(8 / 9)
    assert report.precision == pytest.approx(7.5 / 9)
    assert report.macro_f1 == pytest.approx((7 + 2 / 3) / 9)
    assert report.ci95[0] < report.accuracy < report.ci95[1]


@pytest.mark.usefixtures("few_samples")
def test_a_report_names_its_split_data_model_and_size() -> None:
    tiles = split()
    report = evaluate_validator(Told(), tiles, "a model")
    assert (report.what, report.split, report.n, report.model) == ("validator", "val", 90, "a model")
    assert report.data == tiles.sha256
    assert report.headline == "accuracy"


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize(
    ("confidence", "mistake", "gap"), [(0.92, lambda i: i, 0.08), (0.6, lambda i: 0, 0.6 - 1 / 9)]
)
def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy(
    confidence: float, mistake: Callable[[int], int], gap: float
) -> None:
    report = evaluate_validator(Told(mistake, confidence), split(), "a model")
    assert report.ece == pytest.approx(gap, abs=1e-5)


@pytest.mark.usefixtures("few_samples")
def test_of_all_of_val_the_report_says_what_calibration_on_other_tiles_gives() -> None:
    random = np.random.default_rng(0)
    swapped = random.permutation(np.repeat([0, 1], [5, 85]))  # 5 of 90 tiles are none of what they seem
    tiles = split()
    tiles = Split("val", painted(np.where(swapped, tiles.labels, 8).tolist()), tiles.labels)
    found = evaluate_validator(Told(), tiles, "a model").cross_fitted
    assert found is not None
    assert (found.split, found.n, found.model) == ("val", 90, "a model")
    assert found.accuracy == pytest.approx(accuracy(tiles.labels, tiles.images[:, 0, 0, 0].astype(np.int64)))
    assert 0 < found.ece < 0.1
    test = Split("test", tiles.images, tiles.labels)
    assert evaluate_validator(Told(), test, "a model").cross_fitted is None


@pytest.mark.usefixtures("few_samples")
def test_first_tiles_take_their_own_seeds_and_none_is_discarded() -> None:
    seen: dict[str, list[int]] = {code: [] for code in CODES}

    def watched(tissue: Tissue, seeds: Sequence[int]) -> Tiles:
        seen[tissue.code].extend(seeds)
        return propose(tissue, seeds)

    report = evaluate_generator(watched, Told(first_as_last), None, 30, 100, "a model")
    assert seen == {t.code: list(range(100 + 30 * t.index, 130 + 30 * t.index)) for t in TISSUES}
    assert (report.n, report.seed, report.split, report.data) == (270, 100, None, None)
    assert report.confusion[0] == [0] * 8 + [30]
    assert report.macro_f1_judge is None


@pytest.mark.usefixtures("few_samples")
def test_seeds_of_an_evaluation_go_round_at_their_largest() -> None:
    seen: list[int] = []

    def watched(tissue: Tissue, seeds: Sequence[int]) -> Tiles:
        seen.extend(seeds)
        return propose(tissue, seeds)

    evaluate_generator(watched, Told(), None, 1, MAX_SEED, "a model")
    assert seen == [MAX_SEED, *range(8)]


@pytest.mark.usefixtures("few_samples")
def test_the_judge_is_asked_for_the_same_tiles() -> None:
    report = evaluate_generator(propose, Told(), Told(first_as_last), 10, 0, "a model")
    assert report.macro_f1 == 1
    assert report.macro_f1_judge == pytest.approx((7 + 2 / 3) / 9)


@pytest.mark.usefixtures("few_samples")
def test_figures_of_the_loop_are_those_of_the_judge() -> None:
    report = evaluate_loop(propose, Told(), Told(first_as_last), 4, 0, "a model")
    assert (report.what, report.headline, report.n) == ("loop", "macro_f1_judge", 36)
    assert report.macro_f1_judge == report.macro_f1 == pytest.approx((7 + 2 / 3) / 9)
    assert report.confusion[0] == [0] * 8 + [4]
    assert report.mean_attempts == 1


@pytest.mark.usefixtures("few_samples")
def test_the_loop_counts_what_it_discarded() -> None:
    def every_third(tissue: Tissue, seeds: Sequence[int]) -> Tiles:
        return painted([tissue.index if seed % 3 == 0 else (tissue.index + 1) % 9 for seed in seeds])

    report = evaluate_loop(every_third, Told(), Told(), 2, 0, "a model")
    assert report.n == 18
    assert report.accuracy == 1
    assert report.mean_attempts == pytest.approx(2)  # discarded before the first of two: none, between: two
