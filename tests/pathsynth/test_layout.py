"""The layout pipeline, with networks of toy size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from pathsynth import layout
from pathsynth.generator import load_pipeline
from pathsynth.layout import (
    LORA_FILE,
    TILE_SIZE,
    LayoutPipeline,
    enlarged,
    fold_size,
    predict_velocity,
    set_steps,
    sketched,
    without_sketch,
)
from pathsynth.text import TextContext
from tests import tiny

EMPTY = tiny.contexts(1, seed=99)


def sample(
    made: LayoutPipeline,
    context: TextContext,
    seeds: Sequence[int],
    guidance: float = 2.0,
    unconditional: TextContext = EMPTY,
    interval: tuple[float, float] = (0.0, 1.0),
) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    tiles: torch.Tensor = made(
        context,
        unconditional,
        generators,
        num_inference_steps=3,
        guidance_scale=guidance,
        guidance_interval=interval,
    )
    return tiles


@pytest.mark.parametrize("fold", [1, 2])
def test_tiles_leave_at_native_size_in_range(fold: int) -> None:
    made = tiny.pipeline(fold)
    assert fold_size(made.unet) == fold
    tiles = sample(made, tiny.contexts(2), (1, 2))
    assert tiles.shape == (2, 3, TILE_SIZE, TILE_SIZE)
    assert tiles.dtype == torch.float32
    assert -1 <= tiles.min() < tiles.max() <= 1


@pytest.mark.parametrize("fold", [1, 2])
def test_the_velocity_has_the_shape_of_the_tiles(fold: int) -> None:
    noisy = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        velocity = predict_velocity(
            tiny.pipeline(fold).unet, fold, noisy, torch.tensor([10.0, 900.0]), tiny.contexts(2)
        )
    assert velocity.shape == noisy.shape


def test_what_the_mask_leaves_out_has_no_influence() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    states = context.states.clone()
    states[:, 5:] = 7
    assert torch.equal(sample(made, TextContext(states, context.mask), (1,)), sample(made, context, (1,)))
    states[:, 4] = 7
    assert not torch.equal(sample(made, TextContext(states, context.mask), (1,)), sample(made, context, (1,)))


def test_guidance_of_one_is_none_and_more_departs_from_the_empty_text() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    other = tiny.contexts(1, seed=50)
    without = sample(made, context, (1,), guidance=1)
    assert torch.equal(without, sample(made, context, (1,), guidance=1, unconditional=other))
    assert not torch.equal(sample(made, context, (1,)), sample(made, context, (1,), unconditional=other))
    assert not torch.equal(sample(made, context, (1,)), without)


def test_guidance_is_applied_at_the_times_of_its_interval_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    sizes: list[int] = []
    predict = layout.predict_velocity

    def counted(unet: torch.nn.Module, fold: int, noisy: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(noisy))
        return predict(unet, fold, noisy, *rest)

    monkeypatch.setattr(layout, "predict_velocity", counted)
    in_the_middle = sample(made, context, (1,), interval=(0.5, 0.8))
    assert sizes == [1, 2, 1]  # at times 1, 2/3 and 1/3
    assert not torch.equal(in_the_middle, sample(made, context, (1,)))
    assert not torch.equal(in_the_middle, sample(made, context, (1,), guidance=1))


def test_steps_are_equal_and_end_at_the_data() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    set_steps(scheduler, 4)
    assert scheduler.timesteps.tolist() == [1000, 750, 500, 250]
    assert scheduler.sigmas.tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_guidance_away_from_the_same_text_changes_nothing() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    guided = sample(made, context, (1,), guidance=5, unconditional=context)
    assert torch.allclose(guided, sample(made, context, (1,), guidance=1), atol=1e-4)


def test_a_tile_follows_its_own_generator_whatever_is_made_beside_it() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    together = sample(made, context, (1, 2, 3))
    assert torch.allclose(sample(made, context, (2,))[0], together[1], atol=1e-5)
    assert torch.equal(sample(made, context, (1, 2, 3)), together)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_random_state_of_the_process_has_no_influence() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    torch.manual_seed(1)
    first = sample(made, context, (4,))
    torch.manual_seed(2)
    assert torch.equal(sample(made, context, (4,)), first)


def test_one_context_serves_all_tiles() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    assert torch.equal(sample(made, context, (1, 2)), sample(made, context.repeat(2), (1, 2)))


def test_standardising_is_undone_and_clipped() -> None:
    made = tiny.pipeline()
    tiles = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(made.restore(made.standardise(tiles)), tiles, atol=1e-6)
    mean = torch.tensor([0.4, 0.1, 0.3]).view(1, 3, 1, 1).expand(1, 3, 28, 28)
    assert made.standardise(mean).abs().max() < 1e-6
    assert made.restore(torch.full((1, 3, 28, 28), 50.0)).max() == 1


def test_a_saved_pipeline_comes_back_the_same(tmp_path: Path) -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    made.save_pretrained(tmp_path)
    back = load_pipeline(tmp_path)
    assert isinstance(back, LayoutPipeline)
    assert list(back.config.data_mean) == [0.4, 0.1, 0.3]
    assert torch.equal(sample(back, context, (1,)), sample(made, context, (1,)))
    assert not list(tmp_path.rglob("*.bin"))


def test_a_saved_adapter_comes_back_and_changes_the_adapter_weights_alone(tmp_path: Path) -> None:
    context = tiny.contexts(1)
    plain = sample(tiny.pipeline(), context, (1,))
    trained = tiny.pipeline()
    tiny.add_adapter(trained)
    adapted = sample(trained, context, (1,))
    trained.unet.save_lora_adapter(tmp_path, weight_name=LORA_FILE)

    loaded = tiny.pipeline()
    before = {name.replace(".base_layer", ""): w.clone() for name, w in loaded.unet.state_dict().items()}
    loaded.load_lora_weights(tmp_path)
    after = {name.replace(".base_layer", ""): w for name, w in loaded.unet.state_dict().items()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    added = after.keys() - before.keys()
    assert added
    assert all("lora_" in name for name in added)
    assert torch.allclose(sample(loaded, context, (1,)), adapted, atol=1e-5)
    assert not torch.allclose(adapted, plain, atol=1e-3)


def test_an_adapter_can_be_swapped_for_another(tmp_path: Path) -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    for name, seed in (("one", 1), ("two", 2)):
        trained = tiny.pipeline()
        tiny.add_adapter(trained, seed)
        trained.unet.save_lora_adapter(tmp_path / name, weight_name=LORA_FILE)
    made.load_lora_weights(tmp_path / "one", "one")
    first = sample(made, context, (1,))
    made.load_lora_weights(tmp_path / "two", "two")
    second = sample(made, context, (1,))
    made.unet.set_adapters(["one"])
    assert torch.equal(sample(made, context, (1,)), first)
    assert not torch.equal(first, second)


def test_the_scheduler_can_be_swapped() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    euler = sample(made, context, (1,))
    made.scheduler = FlowMatchHeunDiscreteScheduler.from_config(made.scheduler.config)
    heun = sample(made, context, (1,))
    assert heun.shape == euler.shape
    assert not torch.equal(heun, euler)
    made.scheduler = FlowMatchEulerDiscreteScheduler()
    assert torch.equal(sample(made, context, (1,)), euler)


def test_every_step_is_told_before_it_is_taken() -> None:
    steps: list[tuple[int, int]] = []
    tiny.pipeline()(
        tiny.contexts(1),
        EMPTY,
        [torch.Generator()],
        num_inference_steps=4,
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_raising_between_steps_stops() -> None:
    steps: list[int] = []

    def stop(done: int, total: int) -> None:
        steps.append(done)
        if done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tiny.pipeline()(tiny.contexts(1), EMPTY, [torch.Generator()], num_inference_steps=50, on_step=stop)
    assert steps == [0, 1]


def test_stochastic_steps_draw_from_the_generator_of_each_tile_alone() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    along = sample(made, context, (1,))
    made.sample_stochastically()
    afresh = sample(made, context, (1,))
    assert not torch.equal(afresh, along)
    torch.manual_seed(123)
    assert torch.equal(sample(made, context, (1,)), afresh)
    assert torch.allclose(sample(made, context, (2, 1))[1:], afresh, atol=1e-4)


def test_steps_of_second_order_end_nearer_to_where_many_end() -> None:
    made, context = tiny.pipeline(), tiny.contexts(2)

    def tiles(steps: int) -> torch.Tensor:
        random = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        result: torch.Tensor = made(context, EMPTY, random, num_inference_steps=steps, guidance_scale=1.0)
        return result

    many, few = tiles(400), tiles(10)
    made.sample_in_second_order()
    assert (tiles(10) - many).abs().mean() < 0.5 * (few - many).abs().mean()


def test_sketches_leave_as_small_as_their_network_was_made_for() -> None:
    made = sample(tiny.sketcher(), tiny.contexts(2), (1, 2))
    assert made.shape == (2, 3, tiny.SKETCH_EDGE, tiny.SKETCH_EDGE)


def test_a_sketch_has_the_mean_colours_of_its_parts_and_shows_them_when_enlarged() -> None:
    halves = torch.cat([torch.full((1, 3, 28, 14), -0.5), torch.full((1, 3, 28, 14), 0.7)], dim=3)
    sketch = sketched(halves, 4)
    assert sketch[0, 0, 0].tolist() == pytest.approx([-0.5, -0.5, 0.7, 0.7])
    large = enlarged(sketch, 28)
    assert large.shape == halves.shape
    assert sketched(large, 4)[0, 0, 1].tolist() == pytest.approx(sketch[0, 0, 1].tolist(), abs=0.15)


def test_noise_without_sketch_shows_none_and_is_else_the_same() -> None:
    noise = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    clear = without_sketch(noise, 7)
    assert torch.allclose(sketched(clear, 7), torch.zeros(2, 3, 7, 7), atol=1e-6)
    taken = (noise - clear).view(2, 3, 7, 4, 7, 4)
    assert torch.allclose(taken, taken[:, :, :, :1, :, :1].expand_as(taken), atol=1e-6)


def test_a_sketch_takes_the_place_of_the_first_step() -> None:
    made, context = tiny.pipeline(), tiny.contexts(1)
    made.sample_stochastically()
    done: list[tuple[int, int]] = []

    def tile(sketch: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = made(
            context,
            EMPTY,
            [torch.Generator().manual_seed(1)],
            num_inference_steps=4,
            guidance_scale=1.0,
            on_step=lambda *at: done.append(at),
            sketches=sketch,
        )
        return result

    plain = tile(None)
    assert done == [(i, 4) for i in range(4)]
    done.clear()
    bright, dark = (tile(torch.full((1, 3, 7, 7), value)) for value in (0.9, -0.9))
    assert done == 2 * [(i, 3) for i in range(3)]
    assert bright.mean() > dark.mean() + 0.1
    assert not torch.equal(plain, bright)
