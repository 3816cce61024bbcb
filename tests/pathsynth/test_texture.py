"""The correction of texture: what it does to a tile, and how it is found."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError

from pathsynth.realism import radial_spectrum
from pathsynth.texture import TextureCorrection, Variety, correct, cycles, vary
from pathsynth.tissues import TISSUES
from pathsynth.training.texture import covariances, fit_texture, fit_variety
from pathsynth.validator import from_model_range, to_model_range
from tests import tiny

SAME = np.eye(3)
TWICE_RED = np.diag([2.0, 1.0, 1.0])


def noise(seed: int, strengths: tuple[float, float, float], count: int = 200) -> npt.NDArray[np.uint8]:
    """Tiles (count, 28, 28, 3) of white noise of these standard deviations of red, green and blue."""
    values = np.random.default_rng(seed).normal(128, strengths, (count, 28, 28, 3))
    rounded: npt.NDArray[np.uint8] = values.round().clip(0, 255).astype(np.uint8)
    return rounded


def matrices(**at: npt.NDArray[np.float64]) -> list[list[list[float]]]:
    """Matrices for 1 to 14 cycles, each the identity but for those named, as `_5`."""
    return [at.get(f"_{i}", SAME).tolist() for i in range(1, 15)]


def test_the_identity_changes_nothing() -> None:
    tiles = torch.rand(3, 3, 28, 28) * 2 - 1
    assert torch.allclose(correct(tiles, matrices()), tiles, atol=1e-5)


def test_a_wave_goes_through_the_matrix_of_its_frequency_and_the_mean_stays() -> None:
    at = (torch.arange(28) + 0.5) / 28
    tile = (0.2 + 0.1 * torch.cos(2 * torch.pi * 5 * at)).expand(1, 3, 28, 28)
    made = correct(tile, matrices(_5=TWICE_RED))
    assert torch.allclose(made[:, 0] - 0.2, 2 * (tile[:, 0] - 0.2), atol=1e-5)
    assert torch.allclose(made[:, 1:], tile[:, 1:], atol=1e-5)
    between = correct(tile, matrices(_4=TWICE_RED, _6=TWICE_RED))
    assert torch.allclose(between, tile, atol=1e-5)
    assert torch.allclose(correct(tile, [[[0.0] * 3] * 3]), torch.full_like(tile, 0.2), atol=1e-5)


def test_tiles_of_several_tissues_are_corrected_at_once_and_gradients_pass() -> None:
    red, weaker = matrices(_5=TWICE_RED, _6=TWICE_RED), matrices(_9=0.5 * SAME)
    correction = TextureCorrection([red, None, weaker], [None] * 3, 28)
    tiles = (torch.rand(4, 3, 28, 28) * 2 - 1).requires_grad_(True)
    made = correction(tiles, torch.tensor([2, 1, 0, 2]))
    assert torch.allclose(made[1], tiles[1], atol=1e-5)
    assert torch.allclose(made[2:3], correct(tiles[2:3], red), atol=1e-5)
    assert torch.allclose(made[[0, 3]], correct(tiles[[0, 3]], weaker), atol=1e-5)
    made.square().sum().backward()
    assert tiles.grad is not None
    assert tiles.grad.abs().amin(dim=(1, 2, 3)).gt(0).all()


def test_frequencies_are_those_of_the_cosine_transform() -> None:
    found = cycles(28)
    assert found[0, 0] == 0
    assert found[0, 10] == found[10, 0] == 5
    assert found[6, 8] == 5


def test_what_is_found_gives_generated_tiles_the_spectrum_and_the_colours_of_real_ones() -> None:
    real, made = noise(0, (26, 20, 24)), noise(1, (20, 20, 22))
    found = fit_texture(made, real)
    assert found is not None
    assert np.array(found).shape == (14, 3, 3)
    gains = np.array(found).mean(axis=0)
    assert np.diag(gains) == pytest.approx([1.3, 1.0, 24 / 22], rel=0.05)
    fresh = noise(2, (20, 20, 22))
    mended = from_model_range(correct(to_model_range(fresh), found))
    wanted = radial_spectrum(real)
    assert np.abs(radial_spectrum(fresh) / wanted - 1).mean() > 0.15
    assert np.abs(radial_spectrum(mended) / wanted - 1).mean() < 0.05
    assert covariances(mended).mean(axis=0) == pytest.approx(covariances(real).mean(axis=0), abs=0.003)


def test_a_share_of_the_correction_changes_that_much_less() -> None:
    real, made = noise(0, (26, 20, 24)), noise(1, (20, 20, 22))
    whole, half, none = (np.array(fit_texture(made, real, strength)) for strength in (1.0, 0.5, 0.0))
    assert half - SAME == pytest.approx((whole - SAME) / 2, abs=1e-4)
    assert none == pytest.approx(np.broadcast_to(SAME, none.shape))


@pytest.mark.parametrize("strength", [10, 90])
def test_tiles_that_are_too_far_from_real_ones_stay_as_they_are(strength: float) -> None:
    assert fit_texture(noise(1, (strength,) * 3), noise(0, (26, 26, 26))) is None


def smudged(seed: int, least: float, most: float, count: int = 300) -> npt.NDArray[np.uint8]:
    """Tiles (count, 28, 28, 3) of white noise, whose strength differs from tile to tile."""
    random = np.random.default_rng(seed)
    strengths = np.exp(random.uniform(np.log(least), np.log(most), (count, 1, 1, 1)))
    values = 150 + strengths * random.normal(0, 1, (count, 28, 28, 3))
    rounded: npt.NDArray[np.uint8] = values.round().clip(0, 255).astype(np.uint8)
    return rounded


def test_tiles_get_the_strength_of_the_real_tile_of_their_rank() -> None:
    real, made, fresh = smudged(0, 2, 30), smudged(1, 6, 12), smudged(2, 6, 12)
    variety = fit_variety(made, real)
    assert len(variety.made) == len(variety.real) == 21
    varied = from_model_range(vary(to_model_range(fresh), variety))

    def strengths(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        deviations: npt.NDArray[np.float64] = tiles.astype(np.float64).std(axis=(1, 2)).mean(axis=1)
        return deviations

    wanted, before, after = (np.quantile(strengths(t), (0.1, 0.5, 0.9)) for t in (real, fresh, varied))
    assert np.abs(before / wanted - 1)[[0, 2]].min() > 0.5
    assert after == pytest.approx(wanted, rel=0.2)
    ranks = [np.argsort(np.argsort(strengths(tiles))) for tiles in (fresh, varied)]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.95
    means = [tiles.astype(np.float64).mean(axis=(1, 2)) for tiles in (fresh, varied)]
    assert means[1] == pytest.approx(means[0], abs=1.5)


def test_tiles_that_vary_as_real_ones_do_stay_nearly_as_they_are() -> None:
    tiles = smudged(0, 4, 20)
    varied = from_model_range(vary(to_model_range(tiles), fit_variety(tiles, tiles)))
    assert np.abs(varied.astype(int) - tiles).max() <= 1


def test_no_tile_changes_by_more_than_four_times() -> None:
    faint = to_model_range(smudged(1, 4, 5))
    variety = fit_variety(smudged(0, 4, 5), smudged(2, 40, 50))
    gain = (vary(faint, variety) - faint.mean((2, 3), keepdim=True)).std() / (
        faint - faint.mean((2, 3), keepdim=True)
    ).std()
    assert float(gain) == pytest.approx(4, rel=0.01)


def test_several_tissues_vary_at_once_each_as_it_does_alone_and_gradients_pass() -> None:
    tiles = to_model_range(smudged(1, 6, 12, 3)).requires_grad_(True)
    weaker = [(0.5 * SAME).tolist()] * 14
    variety = fit_variety(smudged(1, 6, 12), smudged(0, 2, 30))
    varied = TextureCorrection([weaker, weaker, None], [variety, None, None], 28)(
        tiles, torch.tensor([2, 0, 1])
    )
    assert torch.allclose(varied[0], tiles[0], atol=1e-5)
    assert torch.allclose(varied[1], correct(vary(tiles[1:2], variety), weaker)[0], atol=1e-5)
    assert torch.allclose(varied[2], correct(tiles[2:], weaker)[0], atol=1e-5)
    varied.square().sum().backward()
    assert tiles.grad is not None
    assert tiles.grad.abs().amin(dim=(1, 2, 3)).gt(0).all()


@pytest.mark.parametrize(
    ("made", "real"),
    [([0, 1], [0, 1, 2]), ([0, 1], [1, 0]), ([1, 0], [0, 1]), ([0], [0]), ([], [])],
)
def test_quantiles_that_are_none_are_refused(made: Any, real: Any) -> None:
    with pytest.raises(ValidationError):
        Variety(made=made, real=real)


def test_a_generator_varies_the_texture_of_the_tissue_alone() -> None:
    generator = tiny.generator()
    plain = generator.propose(tiny.contexts(1), [1], tissue=TISSUES[0])
    generator._variety = {TISSUES[0].code: Variety(made=[-9.0, 9.0], real=[-10.0, 8.0])}
    fainter, other, unnamed = (
        generator.propose(tiny.contexts(1), [1], tissue=tissue) for tissue in (TISSUES[0], TISSUES[1], None)
    )
    assert np.array_equal(other, plain)
    assert np.array_equal(unnamed, plain)
    assert fainter.astype(float).std(axis=(1, 2)).mean() < 0.5 * plain.astype(float).std(axis=(1, 2)).mean()


def test_a_generator_corrects_the_texture_of_the_tissue_alone() -> None:
    generator = tiny.generator()
    plain = generator.propose(tiny.contexts(1), [1], tissue=TISSUES[0])
    generator._texture = {TISSUES[0].code: [(0.5 * SAME).tolist()] * 14}
    weaker, other, unnamed = (
        generator.propose(tiny.contexts(1), [1], tissue=tissue) for tissue in (TISSUES[0], TISSUES[1], None)
    )
    assert np.array_equal(other, plain)
    assert np.array_equal(unnamed, plain)
    assert weaker.astype(float).std(axis=(1, 2)).mean() < 0.8 * plain.astype(float).std(axis=(1, 2)).mean()
