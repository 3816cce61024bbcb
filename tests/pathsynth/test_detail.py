"""The detail model: the resizing as an operator, the projection, the pipeline; networks of toy size."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pathsynth.detail import (
    LARGEST_RMSE,
    TILE_EDGE,
    DetailPipeline,
    ProjectionError,
    detail_generator,
    enlarge,
    load_autoencoder,
    load_detail_pipeline,
    project,
    reduce_to_native,
    reduction_matrix,
    resizing_error,
)
from pathsynth.errors import PathSynthError, WeightsError
from pathsynth.images import to_native
from pathsynth.text import TextContext
from pathsynth.validator import to_model_range
from tests import tiny

EMPTY = tiny.contexts(1, seed=99)


def noise(seed: int, edge: int = TILE_EDGE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)


def planes(picture: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float64)).permute(2, 0, 1)[None]


# The operator


@pytest.mark.parametrize("picture", [noise(0), tiny.tissue_like(1, TILE_EDGE)], ids=["noise", "tissue"])
def test_the_operator_is_pillows_resizing_to_within_rounding(picture: npt.NDArray[np.uint8]) -> None:
    exact = reduce_to_native(planes(picture))[0].permute(1, 2, 0).numpy()
    difference = exact - to_native(picture)
    assert np.abs(difference).max() < 1.01  # Pillow rounds twice, once for each axis
    assert np.sqrt((difference**2).mean()) < 0.35


def test_the_operator_is_pillows_at_other_sizes_too() -> None:
    picture = noise(2, 128)
    pillow = np.array(Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR))
    exact = reduce_to_native(planes(picture))[0].permute(1, 2, 0).numpy()
    assert np.abs(exact - pillow).max() < 1.01


def test_one_plain_colour_stays_and_odd_edges_are_refused() -> None:
    assert np.allclose(reduction_matrix(224).sum(axis=1), 1)
    with pytest.raises(ValueError, match="multiple"):
        reduction_matrix(100)


def test_enlarging_is_undone_by_resizing() -> None:
    thumbnails = torch.rand(2, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(reduce_to_native(enlarge(thumbnails)), thumbnails, atol=1e-10)


def test_the_operator_can_be_trained_through_after_it_was_first_used_without() -> None:
    tiles = torch.rand(1, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        reduce_to_native(tiles)
    tiles.requires_grad_()
    reduce_to_native(tiles).sum().backward()
    assert tiles.grad is not None
    assert tiles.grad.sum() == pytest.approx(3 * 81, rel=1e-4)


def test_the_operator_stays_exact_inside_autocast() -> None:
    tiles = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = reduce_to_native(tiles)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reduce_to_native(tiles), plain)


# The projection


@pytest.mark.parametrize("seed", range(4))
def test_the_projection_meets_the_layout_whatever_it_starts_from(seed: int) -> None:
    layout = to_native(tiny.tissue_like(seed, TILE_EDGE))
    picture, rmse = project(noise(seed).astype(np.float64), layout)
    assert picture.shape == (TILE_EDGE, TILE_EDGE, 3)
    assert picture.dtype == np.uint8
    assert rmse == resizing_error(picture, layout) <= LARGEST_RMSE


def test_layouts_drawn_at_28_px_with_saturated_areas_are_met() -> None:
    layouts = []
    for seed in range(4):  # blurred a little, as what a network draws: neighbours are no opposites
        layout = tiny.tissue_like(seed).astype(np.float64)
        padded = np.pad(layout, ((1, 1), (1, 1), (0, 0)), mode="edge")
        soft = np.mean([padded[i : i + 28, j : j + 28] for i in range(3) for j in range(3)], axis=0)
        layouts.append(np.clip((soft - 128) * 1.3 + 150, 0, 255).round().astype(np.uint8))
    assert min((each == 255).mean() for each in layouts) > 0.02
    for seed, each in enumerate(layouts):
        assert project(noise(seed).astype(np.float64), each)[1] <= LARGEST_RMSE


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_plain_layouts_are_met_to_the_level(level: int) -> None:
    layout = np.full((28, 28, 3), level, dtype=np.uint8)
    assert project(noise(level).astype(np.float64), layout)[1] <= 0.5


def test_what_meets_the_layout_already_is_left_as_it_is() -> None:
    picture = tiny.tissue_like(5, TILE_EDGE)
    projected, _ = project(picture.astype(np.float64), to_native(picture))
    assert np.abs(projected.astype(int) - picture).max() <= 2


def test_a_layout_that_no_picture_has_is_refused_in_one_sentence() -> None:
    board = (np.indices((28, 28)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., np.newaxis].repeat(3, axis=2)
    with pytest.raises(ProjectionError, match="another seed") as caught:
        project(noise(0).astype(np.float64), board)
    assert isinstance(caught.value, PathSynthError)
    assert "\n" not in str(caught.value)


# The autoencoder


def test_the_thumbnail_of_a_decoded_tile_is_the_one_it_was_given() -> None:
    thumbnails = to_model_range(np.stack([tiny.tissue_like(seed) for seed in range(2)]))
    detail = torch.randn(2, tiny.DETAIL_CHANNELS, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tiles = tiny.autoencoder().decode(thumbnails, detail)
    assert tiles.shape == (2, 3, TILE_EDGE, TILE_EDGE)
    assert torch.allclose(reduce_to_native(tiles), thumbnails, atol=1e-4)


def test_the_decoder_uses_the_detail() -> None:
    autoencoder = tiny.autoencoder()
    thumbnails = to_model_range(tiny.tissue_like(0)[np.newaxis])
    one, other = (
        torch.randn(1, tiny.DETAIL_CHANNELS, 28, 28, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    with torch.no_grad():
        assert not torch.allclose(
            autoencoder.decode(thumbnails, one), autoencoder.decode(thumbnails, other), atol=1e-3
        )


def test_a_saved_autoencoder_comes_back_frozen_and_the_same(tmp_path: Path) -> None:
    made = tiny.autoencoder()
    made.save_pretrained(tmp_path)
    back = load_autoencoder(tmp_path)
    assert not any(weight.requires_grad for weight in back.parameters())
    assert all(torch.equal(weight, made.state_dict()[name]) for name, weight in back.state_dict().items())
    with pytest.raises(WeightsError):
        load_autoencoder(tmp_path / "none")


# The pipeline


def sample(made: DetailPipeline, seeds: tuple[int, ...], guidance: float | None = None) -> torch.Tensor:
    thumbnails = to_model_range(np.stack([tiny.tissue_like(seed) for seed in seeds]))
    generators = [detail_generator(seed) for seed in seeds]
    tiles: torch.Tensor = made(thumbnails, tiny.contexts(1), EMPTY, generators, guidance_scale=guidance)
    return tiles


def test_a_tile_is_the_same_alone_and_in_a_batch() -> None:
    made = tiny.detail_pipeline()
    together = sample(made, (1, 2, 3))
    assert together.shape == (3, 3, TILE_EDGE, TILE_EDGE)
    assert torch.allclose(sample(made, (2,))[0], together[1], atol=1e-5)
    assert torch.equal(sample(made, (1, 2, 3)), together)


def test_a_saved_pipeline_comes_back_the_same(tmp_path: Path) -> None:
    made = tiny.detail_pipeline()
    made.save_pretrained(tmp_path)
    back = load_detail_pipeline(tmp_path)
    assert isinstance(back, DetailPipeline)
    assert (back.config.steps, back.config.detail_std) == (tiny.STEPS, [0.7] * tiny.DETAIL_CHANNELS)
    assert torch.allclose(sample(back, (1,)), sample(made, (1,)), atol=1e-6)
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("part", ["unet", "autoencoder"])
def test_a_pipeline_that_lacks_a_part_is_refused(tmp_path: Path, part: str) -> None:
    tiny.detail_pipeline().save_pretrained(tmp_path)
    (tmp_path / part / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_detail_pipeline(tmp_path)


def test_text_and_guidance_have_an_effect() -> None:
    made = tiny.detail_pipeline()
    thumbnails = to_model_range(tiny.tissue_like(0)[np.newaxis])

    def with_text(context: TextContext, guidance: float) -> torch.Tensor:
        tiles: torch.Tensor = made(thumbnails, context, EMPTY, [detail_generator(0)], guidance_scale=guidance)
        return tiles

    plain = with_text(tiny.contexts(1), 1.0)
    assert not torch.equal(plain, with_text(tiny.contexts(1, seed=5), 1.0))
    assert not torch.equal(plain, with_text(tiny.contexts(1), 3.0))
    assert torch.allclose(with_text(EMPTY, 3.0), with_text(EMPTY, 1.0), atol=1e-4)


def test_standardising_is_undone() -> None:
    made = tiny.detail_pipeline()
    detail = torch.randn(2, tiny.DETAIL_CHANNELS, 4, 4)
    assert torch.allclose(made.restore(made.standardise(detail)), detail, atol=1e-6)
    assert made.standardise(torch.full((1, 2, 1, 1), 0.1)).abs().max() < 1e-6


def test_raising_between_steps_stops() -> None:
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 1:
            raise InterruptedError

    thumbnails = to_model_range(tiny.tissue_like(0)[np.newaxis])
    with pytest.raises(InterruptedError):
        tiny.detail_pipeline()(thumbnails, EMPTY, EMPTY, [detail_generator(0)], on_step=stop)
    assert told == [(0, tiny.STEPS), (1, tiny.STEPS)]


def test_noise_differs_between_seeds_variations_and_the_layout() -> None:
    drawn = [
        torch.randn(4, generator=generator)
        for generator in (
            detail_generator(1),
            detail_generator(2),
            detail_generator(1, 1),
            torch.Generator().manual_seed(1),
        )
    ]
    assert len({tuple(each.tolist()) for each in drawn}) == 4
    assert torch.equal(drawn[0], torch.randn(4, generator=detail_generator(1)))
