"""Colour alone, and how the validator takes what it was not trained for, on arrays with known answers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pathsynth import robustness
from pathsynth.baselines import COLOUR_HISTOGRAM, MEAN_RGB, baseline_accuracies, colour_histogram, mean_rgb
from pathsynth.data import Split
from pathsynth.errors import DataError
from pathsynth.evaluate import reliability_bins, selective_curve
from pathsynth.robustness import (
    DISTURBANCES,
    blur,
    brighten,
    crops,
    jpeg,
    outside,
    outside_sets,
    shuffled,
    stress,
    turn_hue,
)

Tiles = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def plain(colours: npt.ArrayLike) -> Tiles:
    """Tiles (N, 28, 28, 3) of one colour each."""
    return np.broadcast_to(
        np.asarray(colours, np.uint8)[:, None, None], (len(np.asarray(colours)), 28, 28, 3)
    )


def noise(count: int, seed: int = 0) -> Tiles:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)


def coloured_split(count: int, seed: int, same_mean: bool = False) -> Split:
    """Tissues that differ by mean colour, or, with `same_mean`, by contrast around one mean alone."""
    labels = np.arange(count, dtype=np.int64) % 9
    own = np.stack([labels % 3, labels // 3, np.zeros_like(labels)], axis=1)[:, None, None]
    if same_mean:
        chequered = np.indices((28, 28)).sum(0)[None, :, :, None] % 2 * 2 - 1
        values = 128 + chequered * (16 + 32 * own)
    else:
        values = 24 + 96 * own + np.random.default_rng(seed).integers(-4, 5, (count, 28, 28, 3))
    return Split("train", values.astype(np.uint8), labels)


def test_mean_rgb_is_the_mean_of_each_channel() -> None:
    tiles = plain([(10, 20, 30), (0, 0, 0)]).copy()
    tiles[1, :14] = (255, 0, 100)
    assert mean_rgb(tiles).tolist() == [[10, 20, 30], [127.5, 0, 50]]


def test_a_colour_histogram_holds_the_share_of_every_cell() -> None:
    tiles = plain([(0, 0, 0), (255, 255, 255)]).copy()
    tiles[0, :7] = (0, 0, 255)
    histogram = colour_histogram(tiles, bins=2)
    assert histogram.shape == (2, 8)
    assert histogram[0].tolist() == [0.75, 0.25, 0, 0, 0, 0, 0, 0]
    assert histogram[1].tolist() == [0] * 7 + [1]


def test_a_histogram_does_not_see_where_pixels_are() -> None:
    tiles = noise(3)
    mixed = np.random.default_rng(1).permutation(tiles.reshape(3, -1, 3), axis=1).reshape(tiles.shape)
    assert np.array_equal(colour_histogram(tiles), colour_histogram(mixed))


def test_both_baselines_name_tissues_that_differ_in_mean_colour() -> None:
    found = baseline_accuracies(coloured_split(900, 0), coloured_split(90, 1))
    assert found == {MEAN_RGB: 1.0, COLOUR_HISTOGRAM: 1.0}


def test_only_the_histogram_names_tissues_of_one_mean_colour() -> None:
    found = baseline_accuracies(coloured_split(900, 0, True), coloured_split(90, 1, True))
    assert found[COLOUR_HISTOGRAM] == 1
    assert found[MEAN_RGB] < 0.3


def test_baselines_tell_how_far_they_are() -> None:
    heard: list[tuple[int, int, str]] = []
    baseline_accuracies(
        coloured_split(90, 0), coloured_split(9, 1), progress=lambda *each: heard.append(each)
    )
    assert [each[:2] for each in heard] == [(0, 2), (1, 2)]


def probabilities(confidences: list[float], classes: list[int]) -> torch.Tensor:
    result = torch.empty(len(classes), 9)
    for row, (confidence, named) in enumerate(zip(confidences, classes, strict=True)):
        result[row] = (1 - confidence) / 8
        result[row, named] = confidence
    return result


def test_reliability_bins_hold_every_tile_and_their_gaps_make_the_calibration_error() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    random = np.random.default_rng(0)
    labels = random.integers(9, size=500)
    said = torch.from_numpy(random.dirichlet(np.ones(9) * 0.2, size=500))
    bins = reliability_bins(said, labels)
    assert sum(each.n for each in bins) == 500
    ece = sum(each.n / 500 * abs((each.accuracy or 0) - (each.confidence or 0)) for each in bins)
    expected = multiclass_calibration_error(said, torch.from_numpy(labels), 9, n_bins=15)
    assert ece == pytest.approx(float(expected), abs=1e-6)


def test_a_bin_without_tiles_has_no_accuracy() -> None:
    bins = reliability_bins(probabilities([0.95, 0.95], [1, 2]), np.array([1, 3]), bins=10)
    assert [each.n for each in bins] == [0] * 9 + [2]
    assert bins[9].accuracy == 0.5
    assert bins[9].confidence == pytest.approx(0.95)
    assert (bins[0].accuracy, bins[0].confidence) == (None, None)


def test_selective_accuracy_answers_the_surest_first() -> None:
    said = probabilities([0.9, 0.3, 0.8, 0.4], [0, 1, 2, 3])
    points = selective_curve(said, np.array([0, 8, 2, 8]), shares=(1.0, 0.75, 0.5))
    assert [(p.coverage, p.accuracy) for p in points] == [(1, 0.5), (0.75, pytest.approx(2 / 3)), (0.5, 1)]
    assert [p.confidence for p in points] == pytest.approx([0.3, 0.4, 0.8])


@pytest.mark.parametrize("disturb", DISTURBANCES.values(), ids=list(DISTURBANCES))
def test_a_disturbance_changes_tiles_and_keeps_their_kind(disturb: Callable[[Tiles], Tiles]) -> None:
    tiles = noise(3)
    changed = disturb(tiles)
    assert changed.shape == tiles.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, tiles)
    assert np.array_equal(tiles, noise(3))


def test_disturbances_do_what_they_say() -> None:
    red = plain([(200, 0, 0)])
    assert turn_hue(red, 120)[0, 0, 0].tolist() == [0, 200, 0]
    assert turn_hue(red, -120)[0, 0, 0].tolist() == [0, 0, 200]
    assert brighten(red, 1.2)[0, 0, 0].tolist() == [240, 0, 0]
    assert brighten(red, 2)[0, 0, 0].tolist() == [255, 0, 0]
    assert np.array_equal(blur(red), red)
    assert blur(noise(1)).std() < 0.5 * noise(1).std()
    assert np.abs(jpeg(red).astype(int) - red).max() <= 8


class ByBrightness:
    """Names tissue 0 when a tile is bright and 1 when it is dark; the farther from grey, the stranger."""

    def probabilities(self, tiles: Tiles, on_batch: Callable[[int, int], None] | None = None) -> torch.Tensor:
        if on_batch is not None:
            on_batch(0, len(tiles))
        bright = torch.from_numpy(tiles.mean(axis=(1, 2, 3)) > 100).long()
        return torch.nn.functional.one_hot(1 - bright, 9).float()

    def ood_scores(self, tiles: Tiles) -> torch.Tensor:
        spread = np.ptp(tiles.astype(float), axis=3).mean(axis=(1, 2))
        return torch.from_numpy(spread / 10)


def test_stress_is_the_accuracy_on_the_disturbed_tiles() -> None:
    split = Split("val", plain([(110, 110, 110), (50, 50, 50)]), np.array([0, 1]))
    found = stress(ByBrightness(), split, np.array([0, 0]), 3, "abc")
    assert found.accuracy["unchanged"] == 0.5  # what it was told, not what it would find
    assert found.accuracy["brightness x 0.8"] == 0.5
    assert found.accuracy["brightness x 1.2"] == 1
    assert (found.n, found.split, found.model) == (2, "val", "abc")
    assert found.accuracy.keys() == {"unchanged", *DISTURBANCES}


def test_stress_of_a_large_split_is_of_tiles_drawn_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "STRESSED_TILES", 4)
    colours = [(110, 110, 110), (200, 200, 200), (50, 50, 50)] * 4
    split = Split("val", plain(colours), np.array([0, 0, 1] * 4))
    wrong = np.full(12, 8)
    found = [stress(ByBrightness(), split, wrong, seed, "abc") for seed in (0, 0, 1, 2, 3)]
    assert [each.n for each in found] == [4] * 5
    assert found[0] == found[1]
    assert found[0].seed == 0
    assert all(each.accuracy["unchanged"] == 0 and each.accuracy["brightness x 1.2"] == 1 for each in found)
    assert len({each.accuracy["brightness x 0.8"] for each in found}) > 1


def test_shuffled_patches_keep_every_pixel_and_move_whole_patches() -> None:
    tiles = noise(4)
    mixed = shuffled(tiles, seed=0)
    assert not np.array_equal(mixed, tiles)
    for tile, other in zip(tiles, mixed, strict=True):
        parts = {tile[r : r + 7, c : c + 7].tobytes() for r in range(0, 28, 7) for c in range(0, 28, 7)}
        moved = {other[r : r + 7, c : c + 7].tobytes() for r in range(0, 28, 7) for c in range(0, 28, 7)}
        assert parts == moved
    assert np.array_equal(mixed, shuffled(tiles, seed=0))
    assert not np.array_equal(mixed, shuffled(tiles, seed=1))


def test_a_missing_image_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="install scikit-image"):
        crops([tmp_path / "absent.png"], 1, 0)


@pytest.fixture
def grey_tiles() -> Split:
    """Tiles of slightly coloured grey with structure, as uint8 (180, 28, 28, 3)."""
    random = np.random.default_rng(5)
    grey = random.integers(60, 200, (180, 28, 28, 1))
    tint = random.integers(0, 8, (180, 1, 1, 3))
    return Split("val", (grey + tint).astype(np.uint8), np.arange(180, dtype=np.int64) % 9)


def test_the_outside_sets_are_there_and_named_with_their_origin(grey_tiles: Split) -> None:
    sets = outside_sets(grey_tiles, seed=3)
    assert all(tiles.shape[1:] == (28, 28, 3) and tiles.dtype == np.uint8 for _, tiles in sets.values())
    assert "astronaut" in sets["photographs"][0]
    assert "china" in sets["photographs"][0]
    assert "gravel" in sets["textures"][0]
    assert "ihc" not in sets["photographs"][0]
    assert len(sets["shuffled patches"][1]) == 180
    assert len(sets["shuffled patches without BACK"][1]) == 160
    coloured = sets["coloured noise"][1].reshape(-1, 3).mean(axis=0)
    assert coloured == pytest.approx(grey_tiles.images.reshape(-1, 3).mean(axis=0), abs=2)
    again = outside_sets(grey_tiles, seed=3)
    assert all(np.array_equal(tiles, again[name][1]) for name, (_, tiles) in sets.items())


def test_the_auroc_is_high_where_the_score_separates_and_half_where_it_cannot(grey_tiles: Split) -> None:
    found = outside(ByBrightness(), grey_tiles, 0, "abc")
    assert found.sets["uniform noise"].auroc == 1
    assert found.sets["uniform noise"].refused == 1
    # A shuffled tile has the same pixels, so this score cannot tell it from its original.
    assert found.sets["shuffled patches"].auroc == pytest.approx(0.5, abs=0.01)
    assert found.refused == 0
    assert (found.n, found.seed, found.split, found.model) == (180, 0, "val", "abc")


def test_every_named_image_ships_with_its_package() -> None:
    import skimage
    import sklearn

    data = Path(skimage.__file__).parent / "data"
    for name in (*robustness.PHOTOGRAPHS, *robustness.TEXTURES):
        assert (data / name).is_file(), name
    for name in robustness.SAMPLE_IMAGES:
        assert (Path(sklearn.__file__).parent / "datasets" / "images" / name).is_file(), name
