"""Adapters against a rival, in a few steps of models of toy size."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pathsynth.errors import TrainingError, WeightsError
from pathsynth.generator import SETTINGS_FILE, Sampling, load_pipeline
from pathsynth.layout import LORA_FILE, edge_of, sketched
from pathsynth.text import CONTEXT_WIDTH, TextEncoder
from pathsynth.texture import Variety
from pathsynth.tissues import TISSUES
from pathsynth.training.adversarial import (
    AdversarialBaseTask,
    AdversarialLoraTask,
    TissueBatch,
    TissueSpread,
)
from pathsynth.training.engine import OptimConfig, Run, run
from pathsynth.training.layout import LoraTask
from pathsynth.training.layout_config import (
    AdversarialConfig,
    AlignmentConfig,
    BaseConfig,
    FlowConfig,
    LoraConfig,
)
from pathsynth.training.perceptual import hinges
from pathsynth.training.pupil import FreshLessons, LargePupil, Lessons
from pathsynth.training.rivals import EvenColours, KeenRival, TileRival, shifted
from pathsynth.validator import to_model_range
from tests import tiny

OPTIM = OptimConfig(
    steps=3, batch_size=4, learning_rate=0.01, warmup_steps=0, ema_decay=0.0, beta1=0.0, precision="float32"
)


def config(**fields: Any) -> LoraConfig:
    defaults: dict[str, Any] = {
        "optim": OPTIM,
        "rank": 2,
        "alpha": 2,
        "target_modules": ["to_q", "to_v", "conv1"],
        "adversarial": AdversarialConfig(rival_width=4),
        "flow": FlowConfig(drop_text=0.0),
    }
    return LoraConfig(kind="lora", **(defaults | fields))


def task_of(encoder: TextEncoder, **fields: Any) -> AdversarialLoraTask:
    return AdversarialLoraTask(
        config(**fields),
        tiny.pipeline(),
        tiny.validator(),
        tiny.split("train", 36),
        tiny.split("val", 90, seed=1),
        encoder,
    )


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def changed(network: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in network.named_parameters() if not torch.equal(weight, before[name])}


def test_a_step_changes_the_adapter_and_the_rival_and_nothing_else(encoder: TextEncoder) -> None:
    task = task_of(encoder)
    network, rival, validator = (weights_of(m) for m in (task.model, task.rival, task._validator.model))
    for _ in Run(task, OPTIM).steps():
        pass
    assert changed(task.model, network)
    assert all("lora_" in name for name in changed(task.model, network))
    assert {name for name in rival if not name.endswith("bias")} <= changed(task.rival, rival)
    assert not changed(task._validator.model, validator)
    assert int(task.rival.get_buffer("steps")) == 3


def test_before_its_turn_the_rival_learns_but_does_not_count(encoder: TextEncoder) -> None:
    silent = AdversarialConfig(rival_width=4, rival_from=99, reconstruction=0.0)
    task = task_of(encoder, adversarial=silent)
    batch, generator = task.batch(4, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    assert task.loss(task.model, batch, generator).item() == 0
    assert float(task.rival_loss(task.rival, batch).detach()) > 0


def test_reconstruction_asks_nothing_of_what_is_made_from_pure_noise(encoder: TextEncoder) -> None:
    only_noise = AdversarialConfig(rival_width=4, rival_from=99, steps=1)
    task = task_of(encoder, adversarial=only_noise)
    generator = torch.Generator().manual_seed(0)
    assert task.loss(task.model, task.batch(4, generator), generator).item() == 0


def test_the_rival_learns_to_tell_made_from_real(encoder: TextEncoder) -> None:
    task = task_of(encoder, adversarial=AdversarialConfig(rival_width=8, rival_from=9999))
    optimizer = torch.optim.Adam(task.rival.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        batch = task.batch(18, generator)
        with torch.no_grad():
            task.loss(task.model, batch, generator)
        loss = task.rival_loss(task.rival, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_rival_answers_at_three_scales_and_for_each_kind_of_features() -> None:
    rival = TileRival(4, [5])
    tiles, text, tissues = torch.zeros(2, 3, 28, 28), torch.zeros(2, CONTEXT_WIDTH), torch.tensor([0, 8])
    logits = rival(tiles, text, tissues, [torch.ones(2, 5, 6, 6)])
    assert [tuple(each.shape) for each in logits] == [(2, 14, 14), (2, 7, 7), (2, 1, 1), (2, 6, 6)]
    assert not torch.equal(logits[3][0], logits[3][1])  # the tissue counts


def faintly_coloured(count: int, faint: float, random: torch.Generator) -> torch.Tensor:
    """Tiles (N, 3, 28, 28) of one colour, and `faint` times as much of another at each place by itself."""
    strong = torch.randn(count, 1, 28, 28, generator=random) * torch.tensor([0.5, 0.7, 0.5]).view(3, 1, 1)
    weak = torch.randn(count, 1, 28, 28, generator=random) * torch.tensor([0.7, 0.0, -0.7]).view(3, 1, 1)
    return strong + faint * weak


def test_even_colours_all_vary_as_much_and_apart_from_one_another() -> None:
    random = torch.Generator().manual_seed(0)
    tiles = faintly_coloured(64, 0.05, random) + 0.02 * torch.randn(64, 3, 28, 28, generator=random) + 0.3
    seen = EvenColours(tiles)(tiles)
    assert seen.shape == (64, 6, 28, 28)
    for part in (seen[:, :3], seen[:, 3:]):
        covariance = torch.cov(part.transpose(0, 1).flatten(1))
        assert torch.allclose(covariance, torch.eye(3), atol=1e-2)


def test_even_colours_keep_one_level_in_half_precision() -> None:
    random = torch.Generator().manual_seed(0)
    known = faintly_coloured(64, 0.03, random)
    colours, tiles = EvenColours(known), faintly_coloured(4, 0.03, random)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = colours(tiles)
    assert torch.equal(seen, colours(tiles))


def test_a_keen_rival_learns_what_a_faint_colour_tells_and_another_does_not() -> None:
    random = torch.Generator().manual_seed(0)
    colours = EvenColours(faintly_coloured(64, 0.03, random))
    text, tissues = torch.zeros(16, CONTEXT_WIDTH), torch.zeros(16, dtype=torch.int64)
    left = {}
    for name in ("keen", "plain"):
        torch.manual_seed(0)
        rival = KeenRival(colours, 8) if name == "keen" else TileRival(8)
        optimizer = torch.optim.Adam(rival.parameters(), 2e-3)
        losses = []
        for _ in range(60):
            real, made = (faintly_coloured(16, faint, random) for faint in (0.03, 0.01))
            loss = hinges(rival(real, text, tissues), rival(made, text, tissues))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        left[name] = sum(losses[-5:]) / sum(losses[:5])
    assert left["keen"] < 0.75 < 0.95 < left["plain"]


def test_faint_texture_is_levelled_beside_what_a_keen_rival_sees_anyway() -> None:
    random = torch.Generator().manual_seed(0)
    known = 0.5 * torch.randn(64, 3, 28, 28, generator=random)
    plain, faint = (EvenColours(known, each)(known) for each in (False, True))
    assert torch.equal(faint[:, :6], plain)
    assert faint.shape == (64, 9, 28, 28)
    fine, levelled = plain[:, 3:].abs(), faint[:, 6:].abs()
    weak, strong = (fine > 0.1) & (fine < 0.15), fine > 1
    assert fine[strong].mean() > 9 * fine[weak].mean()
    assert levelled[strong].mean() < 2.5 * levelled[weak].mean()


def test_with_faint_lines_the_sketch_is_kept_by_plain_distance(encoder: TextEncoder) -> None:
    losses = []
    for faint in (False, True):
        kept = AdversarialConfig(
            rival_width=4,
            rival_from=99,
            reconstruction=0,
            steps=2,
            sketch=14,
            sketch_kept=1,
            keen=True,
            faint=faint,
        )
        task = task_of(encoder, adversarial=kept)
        batch = task.batch(4, torch.Generator().manual_seed(0))
        made = task._shown(task._wanted_of(batch.tiles)) + 0.5
        task._maker = lambda *_, made=made: lambda noisy, time, where: made  # type: ignore[method-assign]
        losses.append(task.loss(task.model, batch, torch.Generator().manual_seed(0)).item())
    assert losses == pytest.approx([0.25, 0.5], rel=0.2)


def test_a_run_goes_on_with_a_keen_rival_where_it_had_the_other_but_not_back(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    plain, keen = (AdversarialConfig(rival_width=4, keen=each) for each in (False, True))
    before = Run(task_of(encoder, adversarial=plain), OPTIM)
    for _ in before.steps():
        pass
    before.save(tmp_path / "checkpoint.pt")
    assert before.rivalry is not None
    known = {name: weight.clone() for name, weight in before.rivalry.model.state_dict().items()}
    longer = OPTIM.model_copy(update={"steps": OPTIM.steps + 2})
    after = Run(task_of(encoder, adversarial=keen), longer)
    assert after.rivalry is not None
    fresh = weights_of(after.rivalry.model.keen)
    after.restore(tmp_path / "checkpoint.pt")
    assert all(torch.equal(after.rivalry.model.state_dict()[name], known[name]) for name in known)
    assert not changed(after.rivalry.model.keen, fresh)
    moments = before.rivalry.optimizer.state_dict()["state"]
    restored = after.rivalry.optimizer.state_dict()["state"]
    assert restored.keys() == moments.keys()
    assert all(torch.equal(restored[i]["exp_avg_sq"], moments[i]["exp_avg_sq"]) for i in moments)
    for _ in after.steps():
        pass
    assert after.state.step == longer.steps
    assert changed(after.rivalry.model.keen, fresh) >= {name for name in fresh if not name.endswith("bias")}
    after.save(tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="cannot be resumed"):
        Run(task_of(encoder, adversarial=plain), OPTIM).restore(tmp_path / "checkpoint.pt")


def test_a_pupil_learns_beside_the_rival_and_a_run_may_go_on_with_one(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    without, taught = (AdversarialConfig(rival_width=4, steps=1, pupil=each) for each in (0.0, 1.0))
    before = Run(task_of(encoder, adversarial=without), OPTIM)
    for _ in before.steps():
        pass
    before.save(tmp_path / "checkpoint.pt")
    longer = OPTIM.model_copy(update={"steps": OPTIM.steps + 3, "batch_size": 90})
    task = task_of(encoder, adversarial=taught)
    after = Run(task, longer)
    after.restore(tmp_path / "checkpoint.pt")
    assert after.rivalry is not None
    pupil = after.rivalry.model.pupil
    fresh = weights_of(pupil)
    for _ in after.steps():
        pass
    assert changed(pupil, fresh) == set(fresh)
    assert int(pupil.steps) == 3
    after.save(tmp_path / "checkpoint.pt")
    again = Run(task_of(encoder, adversarial=taught), longer)
    again.restore(tmp_path / "checkpoint.pt")
    assert again.rivalry is not None
    assert not changed(again.rivalry.model.pupil, weights_of(pupil))
    figures = task.evaluate(after.averaged)
    assert {f"taught_{tissue.code}" for tissue in TISSUES} <= figures.keys()
    alone = Run(task_of(encoder, adversarial=without), longer)
    alone.restore(tmp_path / "checkpoint.pt")  # and without it again
    assert alone.rivalry is not None
    both = (alone.rivalry, again.rivalry)
    rival, beside = (each.model.state_dict() for each in both)
    assert rival
    assert all(torch.equal(weight, beside[name]) for name, weight in rival.items())
    counts = [len(each.optimizer.state_dict()["state"]) for each in both]
    assert counts[0] == counts[1] - len(list(pupil.parameters())) > 0


def test_what_a_pupil_would_learn_may_count(encoder: TextEncoder) -> None:
    only = AdversarialConfig(rival_width=4, rival_from=99, steps=1, reconstruction=0.0, pupil=1.0)
    task = task_of(encoder, adversarial=only)
    generator = torch.Generator().manual_seed(0)
    batch = task.batch(90, generator)
    assert task.loss(task.model, batch, generator).item() == 0  # it knows nothing yet
    assert isinstance(task._lessons, Lessons)
    task._lessons._pupil.steps.fill_(100)
    task.loss(task.model, batch, generator).backward()
    gradients = [weight.grad for weight in task.model.parameters() if weight.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_fresh_pupils_may_count_in_place_of_one_that_learns_on(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_FRESH_LESSONS": 2, "_FRESH_LEAST": 1}.items():
        monkeypatch.setattr(f"pathsynth.training.pupil.{name}", value)
    only = AdversarialConfig(
        rival_width=4,
        rival_from=99,
        steps=1,
        reconstruction=0.0,
        pupil=1.0,
        fresh_pupils=2,
        fresh_architectures=["resnet18"],
    )
    task = task_of(encoder, adversarial=only)
    generator = torch.Generator().manual_seed(0)
    batch = task.batch(90, generator)
    assert task.loss(task.model, batch, generator).item() == 0  # there is none yet
    assert not [name for name in task.evaluate(task.model) if name.startswith("taught_")]
    task.loss(task.model, batch, generator).backward()
    gradients = [weight.grad for weight in task.model.parameters() if weight.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert {f"taught_{tissue.code}" for tissue in TISSUES} <= task.evaluate(task.model).keys()
    assert not [name for name, _ in task.rival.named_parameters() if "pupil" in name]
    assert isinstance(task._lessons, FreshLessons)
    assert [type(each) for each in task._lessons._pupils] == [LargePupil]


def test_a_keen_rival_sees_tiles_in_the_levels_in_which_they_are_stored(encoder: TextEncoder) -> None:
    task = task_of(encoder, adversarial=AdversarialConfig(rival_width=4, keen=True))
    made = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0)).requires_grad_()
    used = task._as_used(made, torch.zeros(4, dtype=torch.int64))
    levels = (task.pipeline.restore(used.detach()) + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    used.sum().backward()
    assert made.grad is not None
    assert torch.equal(made.grad, torch.ones_like(made))


def test_with_a_keen_rival_the_power_of_each_principal_colour_counts(encoder: TextEncoder) -> None:
    task = task_of(encoder, adversarial=AdversarialConfig(rival_width=4, keen=True, spectrum=1.0))
    tiles = to_model_range(task.train.images[:4])
    power = task._power_in(tiles)
    assert power.shape == (4, 4 * 14)
    grey = tiles.mean(1, keepdim=True).expand_as(tiles)
    coloured = task._power_in(grey) / power
    assert torch.allclose(coloured[:, :14], torch.ones(4, 14), atol=1e-3)  # grey has all that grey has
    assert float(coloured[:, 14:28].median()) < 0.5  # and little of the faint colours


def test_features_of_the_validator_reach_the_network_and_stay_as_they_are(encoder: TextEncoder) -> None:
    seen = AdversarialConfig(rival_width=4, features=["layer1", "layer3"], reconstruction=0.0)
    task = task_of(encoder, adversarial=seen)
    before = weights_of(task._validator.model)
    assert any(name.startswith("other.1") for name in weights_of(task.rival))
    for heads in (task.rival.real, task.rival.of_text, task.rival.of_tissue):
        assert isinstance(heads, nn.ModuleList)
        for head in heads[:3]:  # only what looks at features is left to say anything
            for weight in head.parameters():
                nn.init.zeros_(weight)
    generator = torch.Generator().manual_seed(0)
    task.loss(task.model, task.batch(4, generator), generator).backward()
    gradients = [weight.grad for weight in task.model.parameters() if weight.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    for _ in Run(task, OPTIM).steps():
        pass
    assert not changed(task._validator.model, before)
    assert all(weight.grad is None for weight in task._validator.model.parameters())


def test_power_is_asked_to_fall_where_a_tissue_has_too_much_and_to_rise_where_too_little(
    encoder: TextEncoder,
) -> None:
    task = task_of(encoder, adversarial=AdversarialConfig(rival_width=4, spectrum=1.0))
    step, labels = torch.tensor([0, 0]), torch.tensor([2, 5])
    real = task.pipeline.standardise(to_model_range(task.train.images[[2, 5]]))
    grey = real.mean(1, keepdim=True).expand_as(real)
    made = (grey - grey.mean((2, 3), keepdim=True)) * torch.tensor([0.2, 4.0]).view(2, 1, 1, 1)
    made.requires_grad_(True)
    for _ in range(200):  # until the means are those of these tiles
        loss = task._out_of_tune(made, step, labels)
    (gradient,) = torch.autograd.grad(loss, made)
    change = (gradient * made.detach()).sum((1, 2, 3))  # when contrast grows
    assert change[0] < 0 < change[1]
    untouched = task._power[:, 7]
    assert torch.equal(untouched, task._wanted[7].expand_as(untouched))


def test_spread_draws_to_real_tiles_and_apart_from_those_made_lately() -> None:
    known = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    spread = TissueSpread([[known], [known + 50]], 1)
    step, labels = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for _ in range(40):  # everything lately was made at the same place, right of the middle
        spread([torch.tensor([[0.5, 0.0]])], step, labels)
    here = torch.tensor([[0.6, 0.0]], requires_grad=True)
    (apart,) = torch.autograd.grad(spread([here], step, labels), here)
    assert apart[0, 0] < 0  # a step against it leads away from the others
    far = torch.tensor([[9.0, 0.0]], requires_grad=True)
    (apart,) = torch.autograd.grad(spread([far], torch.zeros(1).long(), torch.ones(1).long()), far)
    assert (apart < 0).all()  # nothing was made of this tissue yet: to the real ones, at 50


@pytest.mark.parametrize(("steps", "remembered"), [(2, 32), (8, 12), (96, 8)])
def test_spread_forgets_what_was_made_long_ago_sooner_with_many_steps(steps: int, remembered: int) -> None:
    known = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    first = torch.zeros(1, dtype=torch.int64)

    def after(old: int, new: int) -> float:
        spread = TissueSpread([[known]], steps)
        for count, place in ((old, 9.0), (new, 0.5)):
            for _ in range(count):
                spread([torch.full((1, 2), place)], first, first)
        return float(spread([torch.zeros(1, 2)], first, first))

    assert after(40, remembered) == after(0, remembered)
    assert after(40, remembered - 1) != after(0, remembered - 1)


def test_spread_is_least_for_what_is_spread_as_real_tiles_are() -> None:
    random = torch.Generator().manual_seed(0)
    known = torch.randn(256, 3, generator=random)

    def mean_of(scale: float) -> float:
        spread, found = TissueSpread([[known]], 1), []
        for _ in range(300):
            made = scale * torch.randn(1, 3, generator=random)
            found.append(float(spread([made], torch.zeros(1).long(), torch.zeros(1).long())))
        at = torch.cdist(known, known).mean() / 3**0.5  # E|x - y| of real ones, to be added to either
        assert at > 0
        return float(torch.tensor(found[40:]).mean()) + 0.5 * _apart(scale, random)

    collapsed, right, wide = (mean_of(scale) for scale in (0.1, 1.0, 3.0))
    assert right < collapsed
    assert right < wide


def _apart(scale: float, random: torch.Generator) -> float:
    """Mean distance of two tiles made, of which the loss counts the whole and the energy distance half."""
    one, other = (scale * torch.randn(2000, 3, generator=random) for _ in range(2))
    return float((one - other).norm(dim=1).mean()) / 3**0.5


def test_all_that_can_have_a_weight_has_a_gradient(encoder: TextEncoder) -> None:
    losses = []
    silent = AdversarialConfig(
        rival_width=4, rival_from=99, reconstruction=0.0, features=["layer1"], on_policy=1.0
    )
    for name in ("attributes", "spread"):
        alone = silent.model_copy(update={name: 1.0})
        task = task_of(encoder, adversarial=alone)
        generator = torch.Generator().manual_seed(0)
        loss = task.loss(task.model, task.batch(18, generator), generator)
        loss.backward()
        gradients = [weight.grad for weight in task.model.parameters() if weight.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        losses.append(float(loss.detach()))
    assert losses[0] > 0


def test_recognition_asks_for_the_tissue_only_where_the_validator_is_not_nearly_sure(
    encoder: TextEncoder,
) -> None:
    asks = AdversarialConfig(rival_width=4, rival_from=99, reconstruction=0.0, recognition=1.0)
    task = task_of(encoder, adversarial=asks)
    tiles = torch.zeros(2, 3, 28, 28)
    sure, other = tiny.ALWAYS.index, (tiny.ALWAYS.index + 1) % 9
    assert float(task._unsure(tiles, torch.tensor([sure, sure]))) == 0
    assert float(task._unsure(tiles, torch.tensor([sure, other]))) == pytest.approx(
        (math.log(8 / 0.01) - 0.1) / 2, rel=1e-3
    )
    head = task._validator.model.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight)
    generator = torch.Generator().manual_seed(0)
    task.loss(task.model, task.batch(18, generator), generator).backward()
    gradients = [weight.grad for weight in task.model.parameters() if weight.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert head.weight.grad is None


def test_shifted_tiles_are_moved_by_at_most_three_pixels() -> None:
    tiles = torch.arange(28.0).view(1, 1, 1, 28).expand(64, 1, 28, 28)
    moved = shifted(tiles, torch.Generator().manual_seed(0))
    offsets = (moved[:, 0, 14, 14] - 14).tolist()
    assert set(offsets) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize(
    ("edge", "clear", "held"),
    [(None, False, False), (7, False, False), (7, True, False), (7, True, True)],
    ids=["from noise", "from sketches", "from clear sketches", "from sketches held"],
)
def test_sampling_in_training_is_what_the_pipeline_does(
    edge: int | None, clear: bool, held: bool, encoder: TextEncoder
) -> None:
    adversarial = AdversarialConfig(rival_width=4, sketch=edge, sketch_clear=clear, sketch_held=held)
    task = task_of(encoder, adversarial=adversarial)
    context, tiles = tiny.contexts(1), to_model_range(tiny.split("val", 1).images)
    with torch.no_grad():
        like = task.pipeline.standardise(tiles)
        trained = task.sample(task.model, context, like, torch.Generator().manual_seed(7))
    task.pipeline.sample_stochastically()
    made = task.pipeline(
        context,
        context,
        [torch.Generator().manual_seed(7)],
        num_inference_steps=4,
        guidance_scale=1.0,
        sketches=None if edge is None else sketched(tiles, edge),
        clear=clear,
        held=held,
    )
    assert torch.allclose(made, trained, atol=1e-4)


def test_a_run_starts_from_a_saved_adapter(encoder: TextEncoder, tmp_path: Path) -> None:
    before = LoraTask(
        config(adversarial=None), tiny.pipeline(), tiny.split("train", 36), tiny.split("val", 18), encoder
    )
    runner = Run(before, OPTIM)
    for _ in runner.steps():
        pass
    expected = {
        name: weight.clone() for name, weight in runner.averaged.named_parameters() if "lora_" in name
    }
    before.save(runner.averaged, tmp_path)
    task = task_of(encoder, initial=tmp_path / "lora")
    own = {name: weight for name, weight in task.model.named_parameters() if "lora_" in name}
    assert own.keys() == expected.keys()
    assert all(torch.allclose(own[name], weight, atol=1e-3) for name, weight in expected.items())


def test_an_adapter_of_another_shape_or_none_is_one_sentence(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be loaded"):
        task_of(encoder, initial=tmp_path)
    other = LoraTask(
        config(adversarial=None, rank=1),
        tiny.pipeline(),
        tiny.split("train", 36),
        tiny.split("val", 18),
        encoder,
    )
    other.save(other.model, tmp_path)
    assert (tmp_path / "lora" / LORA_FILE).is_file()
    with pytest.raises(TrainingError, match="shape of the configuration"):
        task_of(encoder, initial=tmp_path / "lora")


def textured(folder: Path, gain: float) -> AdversarialConfig:
    """A configuration whose tiles have `gain` times their contrast, but for those of the last tissue."""
    matrix = [[gain, 0.0, 0.0], [0.0, gain, 0.0], [0.0, 0.0, gain]]
    sampling = Sampling(steps=4, guidance=1.0, texture={t.code: [matrix] * 14 for t in TISSUES[:-1]})
    (folder / SETTINGS_FILE).write_text(sampling.model_dump_json())
    return AdversarialConfig(rival_width=4, texture=folder)


def test_tiles_are_judged_as_they_are_after_the_correction_of_their_texture(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    plain, task = task_of(encoder), task_of(encoder, adversarial=textured(tmp_path, 0.5))
    pictures, labels = [], torch.empty(0)
    for each in (plain, task):
        batch = each.batch(16, torch.Generator().manual_seed(3))
        assert isinstance(batch, TissueBatch)
        labels = batch.labels
        each.loss(each.model, batch, torch.Generator().manual_seed(4))
        made = each._contest.made
        assert made is not None
        pictures.append(each.pipeline.restore(made.pictures).std(dim=(2, 3)).mean(1))
    changed_ones = labels < len(TISSUES) - 1
    assert changed_ones.any()
    assert torch.allclose(pictures[1][changed_ones], 0.5 * pictures[0][changed_ones], rtol=0.2)
    assert torch.allclose(pictures[1][~changed_ones], pictures[0][~changed_ones], atol=1e-4)


def test_what_is_clipped_before_the_correction_still_gets_a_gradient(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    task = task_of(encoder, adversarial=textured(tmp_path, 0.5))
    made = (9 * torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    used = task._as_used(made, torch.tensor([0, 8]))
    assert torch.allclose(task.pipeline.restore(used[1]), task.pipeline.restore(made[1]), atol=1e-5)
    used.square().sum().backward()
    assert made.grad is not None
    assert (made.grad != 0).float().mean() > 0.99


def test_tiles_are_judged_as_they_are_after_their_variety(encoder: TextEncoder, tmp_path: Path) -> None:
    fainter = Variety(made=[-9.0, 9.0], real=[-9.7, 8.3])
    sampling = Sampling(steps=4, guidance=1.0, variety={TISSUES[0].code: fainter})
    (tmp_path / SETTINGS_FILE).write_text(sampling.model_dump_json())
    task = task_of(encoder, adversarial=AdversarialConfig(rival_width=4, texture=tmp_path))
    made = 0.1 * torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    used = task._as_used(made, torch.tensor([0, 8]))
    before, after = (task.pipeline.restore(each).std(dim=(2, 3)).mean(1) for each in (made, used))
    assert (after / before).tolist() == pytest.approx([math.exp(-0.7), 1], rel=0.02)


def test_tiles_that_start_from_sketches_take_one_step_less(encoder: TextEncoder, tmp_path: Path) -> None:
    task = task_of(encoder, adversarial=AdversarialConfig(rival_width=4, steps=4, sketch=7, first_step=0.999))
    times: list[float] = []
    means: list[float] = []
    network = task.model.forward

    def asked(noisy: torch.Tensor, time: torch.Tensor, *others: object, **more: object) -> object:
        times.extend(time.tolist())
        means.append(float(noisy.mean()))
        return network(noisy, time, *others, **more)

    task.model.forward = asked
    generator = torch.Generator().manual_seed(0)
    assert torch.isfinite(task.loss(task.model, task.batch(4, generator), generator))
    assert times == [750.0] * 4
    figures = task.evaluate(task.model)
    assert all(math.isfinite(value) for value in figures.values())
    times.clear()
    means.clear()
    task.sample(task.model, task.captions(["fat"] * 4), torch.full((4, 3, 28, 28), 400.0), generator)
    assert times == [750.0] * 4 + [500.0] * 4 + [250.0] * 4
    assert means[0] == pytest.approx(0.25 * 400, rel=0.02)


def test_the_distance_from_the_sketch_may_count(encoder: TextEncoder) -> None:
    losses = []
    for weight in (0.0, 1.0, 3.0):
        adversarial = AdversarialConfig(rival_width=4, sketch=7, sketch_kept=weight)
        task = task_of(encoder, adversarial=adversarial)
        generator = torch.Generator().manual_seed(0)
        losses.append(float(task.loss(task.model, task.batch(4, generator), generator)))
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-3)


def drawing(folder: Path, **fields: Any) -> AdversarialConfig:
    """A configuration whose tiles start from drawn sketches of 7 px."""
    tiny.sketcher().save_pretrained(folder)
    asked: dict[str, Any] = {"rival_width": 4, "sketch": 7, "sketches": folder, "sketch_steps": 2}
    return AdversarialConfig.model_validate(asked | {"sketches_drawn": 1.0} | fields)


def test_tiles_that_start_from_drawn_sketches_are_what_the_pipeline_makes(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    task = task_of(encoder, adversarial=drawing(tmp_path))
    context = tiny.contexts(1)
    like = task.pipeline.standardise(to_model_range(tiny.split("val", 1).images))
    with torch.no_grad():
        trained = task.sample(task.model, context, like, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    sketcher = tiny.sketcher()
    sketcher.sample_in_second_order()
    sketches = sketcher(context, context, [torch.Generator().manual_seed(seed)], 2, 1.0)
    task.pipeline.sample_stochastically()
    made = task.pipeline(context, context, [generator], 4, 1.0, sketches=sketches)
    assert torch.allclose(made, trained, atol=1e-4)
    assert not torch.allclose(sketches, sketched(task.pipeline.restore(like), 7), atol=0.1)


def test_a_share_of_tiles_starts_from_drawn_sketches(encoder: TextEncoder, tmp_path: Path) -> None:
    task = task_of(encoder, adversarial=drawing(tmp_path, sketches_drawn=0.5))
    batch = task.batch(32, torch.Generator().manual_seed(0))
    data = task.pipeline.standardise(batch.tiles)
    sketches, drawn = task._starts(data, batch.context, torch.Generator().manual_seed(1))
    assert sketches is not None
    assert 6 <= int(drawn.sum()) <= 26
    apart = (sketches - sketched(data, 7)).abs().amax((1, 2, 3))
    assert torch.equal(apart > 0, drawn)


@pytest.mark.parametrize(("share", "counts"), [(1.0, False), (0.0, True)])
def test_what_starts_from_a_drawn_sketch_is_near_that_and_no_tile(
    share: float, *, counts: bool, encoder: TextEncoder, tmp_path: Path
) -> None:
    def loss(**weights: float) -> float:
        task = task_of(encoder, adversarial=drawing(tmp_path, sketches_drawn=share, **first, **weights))
        generator = torch.Generator().manual_seed(0)
        return float(task.loss(task.model, task.batch(4, generator), generator).detach())

    first = {"first_step": 0.999}
    assert (loss(reconstruction=5.0) != pytest.approx(loss(reconstruction=0.0))) is counts
    assert loss(sketch_kept=1.0) > loss()


def test_sketches_of_another_size_or_none_are_one_sentence(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="draws sketches of 7 px"):
        task_of(encoder, adversarial=drawing(tmp_path, sketch=14))
    with pytest.raises(ValidationError, match="no use for drawn sketches"):
        drawing(tmp_path, sketch=None)
    with pytest.raises(WeightsError):
        task_of(encoder, adversarial=drawing(tmp_path / "a", sketches=tmp_path / "b"))


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_run_with_drawn_sketches_measures_itself(
    *, stochastic: bool, encoder: TextEncoder, tmp_path: Path
) -> None:
    how = drawing(tmp_path, on_policy=0.5, sketches_drawn=0.5, sketch_stochastic=stochastic)
    task = task_of(encoder, adversarial=how)
    generator = torch.Generator().manual_seed(0)
    batch = task.batch(4, generator)
    with torch.autocast("cpu", torch.bfloat16):  # as where the processor is fast at it
        assert torch.isfinite(task.loss(task.model, batch, generator))
    assert all(math.isfinite(value) for value in task.evaluate(task.model).values())


def test_a_sketch_in_place_of_the_only_step_is_refused() -> None:
    with pytest.raises(ValidationError, match="two steps or more"):
        AdversarialConfig(steps=1, sketch=7)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sketch_clear": True}, "no sketch to be clear, held or kept"),
        ({"sketch_held": True}, "no sketch to be clear, held or kept"),
        ({"sketch_kept": 1.0}, "no sketch to be clear, held or kept"),
        ({"faint": True}, "no keen rival to see what is faint"),
        ({"sketch": 6, "sketch_clear": True}, "divides 28"),
        ({"sketch": 6, "sketch_held": True}, "divides 28"),
    ],
)
def test_a_sketch_that_cannot_be_clear_or_kept_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AdversarialConfig.model_validate(values)


def sketch_task(encoder: TextEncoder, **fields: Any) -> AdversarialBaseTask:
    """A network of toy size for sketches, against a rival."""
    asked: dict[str, Any] = {
        "adversarial": AdversarialConfig(rival_width=4, steps=2, spread=1.0, spectrum=1.0),
        "optim": OPTIM,
        "unet": tiny.sketch_unet_config(),
        "prompt_style": "domain",
        "flow": FlowConfig(drop_text=0.0),
    }
    return AdversarialBaseTask(
        BaseConfig(kind="base", **(asked | fields)),
        tiny.validator(),
        tiny.split("train", 36),
        tiny.split("val", 90, seed=1),
        encoder,
    )


def test_what_makes_sketches_learns_against_a_rival_that_sees_them_enlarged(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    task = sketch_task(encoder)
    network, rival, validator = (weights_of(m) for m in (task.model, task.rival, task._validator.model))
    state = run(task, OPTIM, tmp_path)
    assert math.isfinite(state.loss)
    assert len(changed(task.model, network)) > len(network) / 2
    assert changed(task.rival, rival)
    assert not changed(task._validator.model, validator)
    made = task._contest.made
    assert made is not None
    assert made.pictures.shape[1:] == (3, 28, 28)
    assert all(math.isfinite(value) for value in state.metrics.values())
    assert edge_of(load_pipeline(tmp_path / "layout").unet) == tiny.SKETCH_EDGE


def test_colours_that_real_tiles_of_a_tissue_do_not_have_may_count_beyond_white_too(
    encoder: TextEncoder,
) -> None:
    task = sketch_task(encoder)
    labels = torch.arange(len(TISSUES))
    low, high = task._usual.unbind(1)
    usual = ((low + high) / 2)[:, :, None, None].repeat(1, 1, tiny.SKETCH_EDGE, tiny.SKETCH_EDGE)
    assert float(task._off_colour(usual, labels)) == pytest.approx(0, abs=1e-6)
    paler = usual.clone()
    paler[2] = high[2][:, None, None] + 9  # far beyond white
    paler.requires_grad_()
    away = task._off_colour(paler, labels)
    assert float(away.detach()) == pytest.approx(9 / len(TISSUES), rel=1e-4)
    away.backward()
    assert paler.grad is not None
    assert (paler.grad[2] > 0).all()
    assert not paler.grad[[0, 1, *range(3, 9)]].any()
    losses = []
    for weight in (0.0, 100.0):
        asked = AdversarialConfig(rival_width=4, steps=2, rival_from=99, colours=weight)
        task, generator = sketch_task(encoder, adversarial=asked), torch.Generator().manual_seed(0)
        losses.append(float(task.loss(task.model, task.batch(4, generator), generator)))
    assert losses[1] > losses[0]


def test_sketches_in_training_are_what_the_pipeline_makes(encoder: TextEncoder) -> None:
    task = sketch_task(encoder)
    context, like = tiny.contexts(1), torch.zeros(1, 3, tiny.SKETCH_EDGE, tiny.SKETCH_EDGE)
    with torch.no_grad():
        trained = task.sample(task.model, context, like, torch.Generator().manual_seed(7))
    task.pipeline.sample_stochastically()
    made = task.pipeline(context, context, [torch.Generator().manual_seed(7)], 2, 1.0)
    assert made.shape == like.shape
    assert torch.allclose(made, trained, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"adversarial": AdversarialConfig(sketch=7)}, "start from none"),
        ({"adversarial": AdversarialConfig(pupil=1.0)}, "are of tiles"),
        ({"adversarial": AdversarialConfig(attributes=1.0)}, "are of tiles"),
        ({"alignment": AlignmentConfig(weight=1.0)}, "leave one out"),
    ],
)
def test_a_base_against_a_rival_that_fits_not_is_refused(
    fields: dict[str, Any], said: str, encoder: TextEncoder
) -> None:
    with pytest.raises(ValidationError, match=said):
        sketch_task(encoder, **fields)


def test_variety_may_see_which_way_tiles_run(encoder: TextEncoder) -> None:
    plain, directed = (
        task_of(encoder, adversarial=AdversarialConfig(rival_width=4, spread=1.0, spread_scales=scales))
        for scales in ([], [0, 1.5])
    )
    tiles = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    kinds = [task._kinds(tiles, task._show(tiles, torch.Generator())) for task in (plain, directed)]
    assert [tuple(kind.shape) for kind in kinds[1]] == [(2, 14), (2, 7), (2, 4)]
    assert len(kinds[0]) == 2
    generator = torch.Generator().manual_seed(0)
    assert torch.isfinite(directed.loss(directed.model, directed.batch(4, generator), generator))


def test_an_adapter_that_corrects_no_texture_is_one_sentence(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        task_of(encoder, adversarial=AdversarialConfig(rival_width=4, texture=tmp_path))
    (tmp_path / SETTINGS_FILE).write_text(Sampling(steps=4, guidance=1.0).model_dump_json())
    with pytest.raises(TrainingError, match="has no correction of texture"):
        task_of(encoder, adversarial=AdversarialConfig(rival_width=4, texture=tmp_path))


def test_a_batch_knows_its_tissues_and_a_finished_run_its_figures(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    task = task_of(encoder)
    batch = task.batch(8, torch.Generator().manual_seed(0))
    assert isinstance(batch, TissueBatch)
    assert batch.labels.shape == (8,)
    state = run(task, OPTIM.model_copy(update={"steps": 1}), tmp_path)
    assert state.metrics["recognised"] == pytest.approx(1 / 9)  # the toy validator sees one tissue everywhere
    assert (tmp_path / "lora" / LORA_FILE).is_file()
