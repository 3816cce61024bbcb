"""Training, in a few steps of models of toy size: what is resumed, what is refused, what changes."""

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig as PeftLoraConfig
from pydantic import BaseModel, ValidationError
from torch import nn
from torch.nn import functional as F

from pathsynth.calibration import vector_scaling
from pathsynth.data import Split
from pathsynth.errors import TrainingError
from pathsynth.generator import load_pipeline
from pathsynth.layout import LORA_FILE, new_pipeline, predict_velocity, sketched
from pathsynth.text import TextContext, TextEncoder
from pathsynth.tissues import TISSUES
from pathsynth.training import engine, read_config, start
from pathsynth.training.augment import dihedral, disturb, vary_stain
from pathsynth.training.captions import CaptionEncoder
from pathsynth.training.engine import OptimConfig, Run, Task, TrainState, run
from pathsynth.training.layout import BaseTask, FlowTask, LoraTask, use_summed_weights
from pathsynth.training.layout_config import AlignmentConfig, BaseConfig, FlowConfig, LoraConfig
from pathsynth.training.validator import ValidatorConfig, ValidatorTask, calibrate
from pathsynth.validator import Validator, symmetric_logits, to_model_range
from tests import tiny

CONFIGS = Path(__file__).parents[2] / "pathsynth" / "training" / "configs"
LINEAR = OptimConfig(
    steps=6, batch_size=8, learning_rate=0.01, warmup_steps=2, ema_decay=0.5, precision="float32"
)


class ToyTask:
    """A convolution with batch statistics on tiles whose colour says their tissue."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(
            nn.Conv2d(3, 4, 7, stride=7), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 9)
        )
        self.train = tiny.split("train", 90)
        self.evaluated = 0

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(self.train), (size,), generator=generator).numpy()
        return to_model_range(self.train.images[chosen]), torch.from_numpy(self.train.labels[chosen])

    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> torch.Tensor:
        images, labels = batch
        noise = torch.randn(images.shape, generator=generator)
        return F.cross_entropy(model(images + 0.1 * noise), labels)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.evaluated += 1
        return {"val_loss": 1.0}

    def save(self, model: nn.Module, folder: Path) -> None:
        torch.save(model.state_dict(), folder / "model.pt")


def state_of(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return saved


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def sentence(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def interrupt_at(step: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[TrainState], None]:
    def report(state: TrainState) -> None:
        if state.step == step:
            raise error

    return report


def test_three_steps_yield_their_state_and_lower_the_loss() -> None:
    runner = Run(ToyTask(), LINEAR.model_copy(update={"steps": 60}))
    states = [(state.step, state.loss, state.learning_rate) for state in runner.steps()]
    assert [step for step, _, _ in states] == list(range(1, 61))
    assert np.mean([loss for _, loss, _ in states[-5:]]) < 0.7 * states[0][1]
    assert states[0][2] == pytest.approx(0.005)
    assert runner.state.images_per_second > 0
    assert runner.state.gflops > 0


def test_the_learning_rate_rises_then_falls_to_its_floor() -> None:
    config = LINEAR.model_copy(update={"steps": 10, "final_learning_rate_fraction": 0.1})
    rates = [config.learning_rate_at(step) for step in range(11)]
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[10] == pytest.approx(0.001)


def test_a_finished_run_leaves_checkpoint_model_and_figures(tmp_path: Path) -> None:
    task, told = ToyTask(), []
    state = run(task, LINEAR, tmp_path, report=lambda state: told.append(state.step))
    assert state.step == 6
    assert state.metrics == {"val_loss": 1.0}
    assert told == [1, 2, 3, 4, 5, 6, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "model.pt"]


def test_an_interrupted_and_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    run(ToyTask(), LINEAR, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(ToyTask(), LINEAR, tmp_path / "parts", report=interrupt_at(3))
    assert state_of(tmp_path / "parts")["state"]["step"] == 3
    assert not (tmp_path / "parts" / "model.pt").exists()
    state = run(ToyTask(), LINEAR, tmp_path / "parts", resume=True)
    assert state.step == 6
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    for part in ("model", "average"):
        assert same(whole[part], parts[part]), part
    assert whole["state"]["loss"] == parts["state"]["loss"]
    assert torch.equal(whole["generator"], parts["generator"])


def test_counting_operations_leaves_no_trace() -> None:
    task = ToyTask()
    runner = Run(task, LINEAR)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    state = runner.generator.get_state()
    assert runner._count_flops(task.batch(8, torch.Generator())) > 0
    assert same(before, task.model.state_dict())
    assert torch.equal(runner.generator.get_state(), state)
    assert all(weight.grad is None for weight in task.model.parameters())


def test_minutes_end_a_run_whole(tmp_path: Path) -> None:
    state = run(ToyTask(), LINEAR, tmp_path, max_minutes=0)
    assert state.step == 1
    assert (tmp_path / "model.pt").exists()
    assert run(ToyTask(), LINEAR, tmp_path, resume=True).step == 6


def test_checkpoints_and_figures_come_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "EVALUATED_SHARE", math.inf)  # however slow the machine is
    task, checkpoints = ToyTask(), []

    def report(state: TrainState) -> None:
        checkpoints.append((tmp_path / "checkpoint.pt").exists())

    run(task, LINEAR, tmp_path, evaluate_every_minutes=0, checkpoint_every_minutes=0, report=report)
    assert checkpoints == [False] + [True] * 6
    assert task.evaluated == 7


def test_a_resumed_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run(ToyTask(), LINEAR, tmp_path)
    before = state_of(tmp_path)["model"]
    assert run(ToyTask(), LINEAR, tmp_path, resume=True).step == 6
    assert same(before, state_of(tmp_path)["model"])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be made") as caught:
        run(ToyTask(), LINEAR, tmp_path / "file" / "out")
    sentence(caught)


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    run(ToyTask(), LINEAR, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match="--resume") as caught:
        run(ToyTask(), LINEAR, tmp_path)
    sentence(caught)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume") as caught:
        run(ToyTask(), LINEAR, tmp_path, resume=True)
    sentence(caught)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"garbage",
        lambda content: content[: len(content) // 2],
        lambda content: content[:100] + b"\0" * 500 + content[600:],
    ],
    ids=["empty", "garbage", "cut", "overwritten"],
)
def test_a_damaged_checkpoint_is_one_sentence_and_stays(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    run(ToyTask(), LINEAR, tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(TrainingError, match="cannot be resumed") as caught:
        run(ToyTask(), LINEAR, tmp_path, resume=True)
    assert str(path) in sentence(caught)
    assert path.read_bytes() == damaged


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(ToyTask(), LINEAR, tmp_path)
    other = ToyTask()
    other.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 9))
    with pytest.raises(TrainingError, match="another configuration") as caught:
        run(other, LINEAR, tmp_path, resume=True)
    sentence(caught)


class Diverging(ToyTask):
    """Its loss is not a number from a step on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.taken = 0

    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> torch.Tensor:
        self.taken += 1  # the first is the count of operations
        return super().loss(model, batch, generator) * (math.nan if self.taken > self.at else 1.0)


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="The loss became nan at step 4") as caught:
        run(Diverging(4), LINEAR, tmp_path, checkpoint_every_minutes=0)
    sentence(caught)
    saved = state_of(tmp_path)
    assert saved["state"]["step"] <= 3
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert run(ToyTask(), LINEAR, tmp_path, resume=True).step == 6
    assert all(torch.isfinite(value).all() for value in state_of(tmp_path)["average"].values())


def test_a_loss_that_is_no_number_at_once_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at step 1"):
        run(Diverging(1), LINEAR, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(ToyTask(), LINEAR, tmp_path, max_minutes=0)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(TrainingError, match="cannot be written") as caught:
            run(ToyTask(), LINEAR, tmp_path, resume=True)
    sentence(caught)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_the_average_follows_the_weights() -> None:
    task = ToyTask()
    runner = Run(task, LINEAR)
    for _ in runner.steps():
        pass
    averaged = dict(runner.averaged.named_parameters())
    weights = dict(task.model.named_parameters())
    assert averaged.keys() == weights.keys()
    assert not any(torch.equal(averaged[name], weight) for name, weight in weights.items())
    assert not runner.averaged.training


# Configurations


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_that_ships_fits(path: Path) -> None:
    from pathsynth.training.detail import AutoencoderConfig, DetailConfig
    from pathsynth.training.detail_adversarial import AdversarialDetailConfig
    from pathsynth.training.detail_decoder import DecoderConfig
    from pathsynth.training.hires import HiresConfig
    from pathsynth.training.outliers import OutlierConfig
    from pathsynth.training.stable_diffusion import StableDiffusionConfig

    shapes: dict[str, type[BaseModel]] = {
        "validator": ValidatorConfig,
        "judge": ValidatorConfig,
        "outliers": OutlierConfig,
        "base": BaseConfig,
        "lora": LoraConfig,
        "lora-stable-diffusion": StableDiffusionConfig,
        "detail-autoencoder": AutoencoderConfig,
        "detail": DetailConfig,
        "detail-decoder": DecoderConfig,
        "detail-adversarial": AdversarialDetailConfig,
        "hires": HiresConfig,
    }

    class Kind(BaseModel):
        kind: str

    assert read_config(path, shapes[read_config(path, Kind).kind])


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


VALID = (
    'kind = "validator"\narchitecture = "resnet18"\n[optim]\nsteps = 3\nbatch_size = 2\nlearning_rate = 0.1\n'
)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (VALID.replace("steps = 3", "steps = 0"), "optim.steps"),
        (VALID.replace("steps = 3\n", ""), "optim.steps"),
        (VALID.replace("0.1", "-1"), "optim.learning_rate"),
        (VALID.replace("resnet18", "vgg"), "architecture"),
        (VALID + "momentum = 0.9\n", "optim.momentum"),
        (VALID + 'precision = "float8"\n', "optim.precision"),
        ("stain_strength = 2\n" + VALID, "stain_strength"),
    ],
)
def test_a_mistake_in_a_configuration_is_named_by_its_field(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(TrainingError, match=f"`{field}`") as caught:
        read_config(written(tmp_path, text), ValidatorConfig)
    sentence(caught)


@pytest.mark.parametrize("text", ["= 3", "[optim", "steps = \n"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TrainingError, match="cannot be read as TOML") as caught:
        read_config(written(tmp_path, text), ValidatorConfig)
    sentence(caught)


def test_a_missing_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read") as caught:
        read_config(tmp_path / "none.toml", ValidatorConfig)
    sentence(caught)


def test_a_configuration_of_another_model_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is for `validator`, not for `judge`") as caught:
        start("judge", written(tmp_path, VALID), tmp_path / "out", False, None, lambda *_: None)
    sentence(caught)
    assert not (tmp_path / "out").exists()


# The layout model

FLOW = OptimConfig(steps=2, batch_size=4, learning_rate=0.01, warmup_steps=0, precision="float32")


def test_a_base_trains_from_scratch_and_loads_as_a_pipeline(encoder: TextEncoder, tmp_path: Path) -> None:
    config = BaseConfig(kind="base", optim=FLOW, unet=tiny.unet_config())
    train = tiny.split("train", 36)
    task = BaseTask(config, train, tiny.split("val", 18, seed=1), encoder)
    state = run(task, FLOW, tmp_path)
    assert math.isfinite(state.loss)
    assert math.isfinite(state.metrics["val_loss"])
    pipeline = load_pipeline(tmp_path / "layout")
    pixels = to_model_range(train.images)
    assert list(pipeline.config.data_mean) == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert pipeline.standardise(pixels).std() == pytest.approx(1, abs=0.1)


def test_a_base_of_sketches_learns_the_mean_colours_of_parts_under_prompts(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    config = BaseConfig(
        kind="base",
        optim=FLOW,
        unet=tiny.sketch_unet_config(),
        prompt_style="domain",
        flow=FlowConfig(drop_text=0),
    )
    train = tiny.split("train", 36)
    task = BaseTask(config, train, tiny.split("val", 18, seed=1), encoder)
    batch = task.batch(4, torch.Generator().manual_seed(0))
    assert set(batch.texts) <= {tissue.prompt for tissue in TISSUES}
    state = run(task, FLOW, tmp_path)
    assert math.isfinite(state.loss)
    assert math.isfinite(state.metrics["val_loss"])
    pipeline = load_pipeline(tmp_path / "layout")
    sketches = sketched(to_model_range(train.images), tiny.SKETCH_EDGE)
    assert pipeline.standardise(sketches).std() == pytest.approx(1, abs=0.1)
    random = [torch.Generator().manual_seed(1)]
    made = pipeline(tiny.contexts(1), tiny.contexts(1), random, num_inference_steps=2)
    assert made.shape == (1, 3, tiny.SKETCH_EDGE, tiny.SKETCH_EDGE)


TRANSFORMER = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 4}


def test_a_transformer_is_trained_and_sampled_as_a_unet_is(encoder: TextEncoder, tmp_path: Path) -> None:
    config = BaseConfig(kind="base", optim=FLOW, transformer=TRANSFORMER)
    task = BaseTask(config, tiny.split("train", 36), tiny.split("val", 18, seed=1), encoder)
    noisy = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([10.0, 900.0])
    run(task, FLOW, tmp_path)
    pipeline = load_pipeline(tmp_path / "layout")
    text, empty = tiny.contexts(2), tiny.contexts(1)
    with torch.no_grad():
        velocity = predict_velocity(pipeline.unet, 1, noisy, times, text)
        assert not torch.allclose(predict_velocity(pipeline.unet, 1, noisy, times.flip(0), text), velocity)
        other = TextContext(text.states.flip(0) + 1, text.mask)
        assert not torch.allclose(predict_velocity(pipeline.unet, 1, noisy, times, other), velocity)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    tiles = pipeline(text, empty, generators, num_inference_steps=2, guidance_scale=1.0)
    assert tiles.shape == (2, 3, 28, 28)


@pytest.mark.parametrize(
    "networks",
    [
        {},
        {"unet": tiny.unet_config(), "transformer": TRANSFORMER},
        {"transformer": TRANSFORMER, "alignment": AlignmentConfig(weight=0.5)},
    ],
)
def test_a_base_has_one_network_that_its_other_choices_fit(networks: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BaseConfig(kind="base", optim=FLOW, **networks)


@pytest.mark.parametrize("wrong", [{"unet": {"block_out_channels": (8,)}}, {"transformer": {"depth": 2}}])
def test_a_network_that_cannot_be_made_is_said_in_a_sentence(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=f"`{min(wrong)}`") as caught:
        BaseConfig(kind="base", optim=FLOW, **wrong).network()
    sentence(caught)


def test_a_weighted_loss_counts_most_at_middle_times(encoder: TextEncoder) -> None:
    plain = BaseConfig(kind="base", optim=FLOW, unet=tiny.unet_config())
    splits = tiny.split("train", 36), tiny.split("val", 18, seed=1)

    def loss(weighting: str, time_mean: float) -> float:
        flow = FlowConfig.model_validate({"weighting": weighting, "time_mean": time_mean, "time_std": 1e-4})
        task = BaseTask(plain.model_copy(update={"flow": flow}), *splits, encoder)
        batch = task.batch(4, torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float(task.loss(task.model, batch, torch.Generator().manual_seed(0)))

    middle, late = loss("cosmap", 0) / loss("none", 0), loss("cosmap", 9) / loss("none", 9)
    assert middle == pytest.approx(4 / math.pi, rel=1e-3)
    assert late == pytest.approx(2 / math.pi, rel=1e-3)


def test_a_base_starts_from_a_trained_one_without_class_embedding(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    plain = {name: value for name, value in tiny.unet_config().items() if "class_embed" not in name}
    trained = new_pipeline(UNet2DConditionModel(**plain), (0.4, 0.1, 0.3), (0.5, 0.5, 0.5))
    trained.save_pretrained(tmp_path)
    config = BaseConfig(kind="base", optim=FLOW, unet=tiny.unet_config(), initial=tmp_path)
    task = BaseTask(config, tiny.split("train", 36), tiny.split("val", 18, seed=1), encoder)
    noisy = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs = (1, noisy, torch.tensor([10.0, 900.0]), tiny.contexts(2))
    with torch.no_grad():
        before = predict_velocity(trained.unet, *inputs)
        assert torch.allclose(predict_velocity(task.model, *inputs), before, atol=1e-5)
    assert [state.step for state in Run(task, FLOW).steps()] == [1, 2]
    with torch.no_grad():
        assert not torch.allclose(predict_velocity(task.model, *inputs), before, atol=1e-3)


def test_a_base_does_not_start_from_another_network(encoder: TextEncoder, tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path)
    wider = tiny.unet_config() | {"block_out_channels": (12, 16)}
    config = BaseConfig(kind="base", optim=FLOW, unet=wider, initial=tmp_path)
    with pytest.raises(TrainingError, match="`initial`") as caught:
        BaseTask(config, tiny.split("train", 36), tiny.split("val", 18, seed=1), encoder)
    sentence(caught)


ALIGNED = BaseConfig(
    kind="base",
    optim=FLOW,
    unet=tiny.unet_config(),
    alignment=AlignmentConfig(weight=0.5, width=8, layers=["block1", "block2"]),
)


def aligned_task(encoder: TextEncoder) -> BaseTask:
    torch.manual_seed(4)
    small = nn.Sequential(
        OrderedDict(block1=nn.Conv2d(3, 5, 7, stride=4), block2=nn.Conv2d(5, 6, 3, stride=2, padding=1))
    )
    return BaseTask(
        ALIGNED, tiny.split("train", 36), tiny.split("val", 18, seed=1), encoder, classifier=small
    )


def test_an_aligned_base_draws_its_middle_to_the_classifier_and_saves_the_network_alone(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    task = aligned_task(encoder)
    frozen = {name: weight.clone() for name, weight in task.classifier.state_dict().items()}
    longer = FLOW.model_copy(update={"steps": 12})
    batch = task.batch(8, torch.Generator().manual_seed(0))

    def distance(model: nn.Module) -> float:
        """What alignment adds to the loss of one batch."""
        with torch.no_grad():
            both = task.loss(model.train(), batch, torch.Generator().manual_seed(0))
            return float(both - task.loss(model.eval(), batch, torch.Generator().manual_seed(0)))

    before = distance(task.model)
    runner = Run(task, longer)
    for _ in runner.steps():
        pass
    assert distance(runner.model) < before
    assert same(task.classifier.state_dict(), frozen)
    task.save(runner.averaged, tmp_path)
    stored = load_pipeline(tmp_path / "layout").unet.state_dict()
    averaged = runner.averaged.get_submodule("unet").state_dict()
    assert stored.keys() == averaged.keys()
    assert all(torch.allclose(stored[name], weight, atol=1e-3) for name, weight in averaged.items())


def test_an_aligned_base_resumes_as_it_was(encoder: TextEncoder, tmp_path: Path) -> None:
    run(aligned_task(encoder), FLOW, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(aligned_task(encoder), FLOW, tmp_path / "parts", report=interrupt_at(1))
    run(aligned_task(encoder), FLOW, tmp_path / "parts", resume=True)
    assert same(state_of(tmp_path / "parts")["average"], state_of(tmp_path / "whole")["average"])


def test_alignment_needs_a_classifier(encoder: TextEncoder) -> None:
    with pytest.raises(TrainingError, match="needs a classifier") as caught:
        BaseTask(ALIGNED, tiny.split("train", 36), tiny.split("val", 18, seed=1), encoder)
    sentence(caught)


def test_summed_weights_are_the_same_adapter_and_get_the_same_gradients() -> None:
    noisy = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs = (1, noisy, torch.tensor([10.0, 900.0]), tiny.contexts(2))
    found = []
    for summed in (False, True):
        unet = tiny.pipeline().unet
        unet.requires_grad_(False)
        torch.manual_seed(3)
        unet.add_adapter(
            PeftLoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "conv1"], init_lora_weights=False)
        )
        if summed:
            use_summed_weights(unet)
        velocity = predict_velocity(unet, *inputs)
        velocity.square().mean().backward()
        gradients = {name: w.grad for name, w in unet.named_parameters() if w.grad is not None}
        found.append((velocity, gradients))
    (plain, expected), (quick, gradients) = found
    assert torch.allclose(quick, plain, atol=1e-5)
    assert gradients.keys() == expected.keys()
    assert any("lora_A" in name for name in gradients)
    assert all(torch.allclose(gradients[name], grad, atol=1e-6) for name, grad in expected.items())


def lora_config(**fields: Any) -> LoraConfig:
    defaults: dict[str, Any] = {"optim": FLOW, "rank": 2, "alpha": 2, "target_modules": ["to_q", "to_v"]}
    return LoraConfig(kind="lora", **(defaults | fields))


def lora_task(encoder: TextEncoder, **fields: Any) -> LoraTask:
    return LoraTask(
        lora_config(**fields),
        tiny.pipeline(),
        tiny.split("train", 36),
        tiny.split("val", 18, seed=1),
        encoder,
    )


def test_an_adapter_run_changes_the_adapter_alone(encoder: TextEncoder, tmp_path: Path) -> None:
    task = lora_task(encoder)
    before = {name: weight.clone() for name, weight in task.model.named_parameters()}
    runner = Run(task, FLOW)
    assert [state.step for state in runner.steps()] == [1, 2]
    after = dict(task.model.named_parameters())
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert {name for name in before if "lora_B" in name} <= changed
    task.save(runner.averaged, tmp_path)
    assert (tmp_path / "lora" / LORA_FILE).is_file()

    fresh = tiny.pipeline()
    fresh.load_lora_weights(tmp_path / "lora")
    loaded = {name: w for name, w in fresh.unet.named_parameters() if "lora_B" in name}
    assert loaded
    assert all(weight.abs().sum() > 0 for weight in loaded.values())


def test_an_adapter_run_resumes_from_its_own_weights_alone(encoder: TextEncoder, tmp_path: Path) -> None:
    run(lora_task(encoder), FLOW, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(lora_task(encoder), FLOW, tmp_path / "parts", report=interrupt_at(1))
    saved = state_of(tmp_path / "parts")
    assert saved["model"]
    assert all("lora_" in name for name in saved["model"])
    run(lora_task(encoder), FLOW, tmp_path / "parts", resume=True)
    assert same(state_of(tmp_path / "whole")["model"], state_of(tmp_path / "parts")["model"])


@pytest.mark.parametrize("kind", ["base", "lora"])
def test_tissues_are_drawn_as_often_as_their_weights_say(encoder: TextEncoder, kind: str) -> None:
    weights = {"NORM": 6.0, "TUM": 2.0}
    if kind == "lora":
        task: FlowTask = lora_task(encoder, tissue_weights=weights)
    else:
        splits = tiny.split("train", 36), tiny.split("val", 18, seed=1)
        config = BaseConfig(kind="base", optim=FLOW, unet=tiny.unet_config(), tissue_weights=weights)
        task = BaseTask(config, *splits, encoder)
    drawn = task.train.labels[task.draw(20_000, torch.Generator().manual_seed(0))]
    share = np.bincount(drawn, minlength=9) / 20_000
    expected = np.bincount(task.train.labels, minlength=9) * np.array([1, 1, 1, 1, 1, 1, 6, 1, 2])
    assert share == pytest.approx(expected / expected.sum(), abs=0.02)


def test_a_weight_of_no_tissue_is_refused() -> None:
    with pytest.raises(ValidationError, match="names no tissue: XXX"):
        lora_config(tissue_weights={"XXX": 2})


def test_text_styles_say_label_prompt_or_prompt_and_attributes(encoder: TextEncoder) -> None:
    train = tiny.split("train", 36)
    generator = torch.Generator().manual_seed(0)

    def texts(style: str) -> list[str]:
        task = lora_task(encoder, prompt_style=style)
        return task.describe(train.images, train.labels, generator)

    assert texts("label") == [TISSUES[label].label for label in train.labels]
    prompts = [TISSUES[label].prompt for label in train.labels]
    assert texts("domain") == prompts
    both = texts("domain+attributes")
    assert all(text.startswith(prompt) for text, prompt in zip(both, prompts, strict=True))
    assert 5 < sum(text == prompt for text, prompt in zip(both, prompts, strict=True)) < 31


def test_dropped_text_is_the_empty_text(encoder: TextEncoder) -> None:
    task = lora_task(encoder, flow=FlowConfig(drop_text=1.0))
    batch = task.batch(4, torch.Generator().manual_seed(0))
    assert batch.context.mask.sum(1).tolist() == [2, 2, 2, 2]
    assert batch.tiles.shape == (4, 3, 28, 28)


def test_figures_on_val_are_the_same_each_time(encoder: TextEncoder) -> None:
    task = lora_task(encoder)
    assert task.evaluate(task.model) == task.evaluate(task.model)


def test_captions_are_encoded_once(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = encoder.encode

    def counted(texts: Any) -> Any:
        seen.extend(texts)
        return encode(texts)

    monkeypatch.setattr(encoder, "encode", counted)
    captions = CaptionEncoder(encoder)
    first = captions(["pink", "violet", "pink"])
    again = captions(["violet"])
    assert sorted(seen) == ["pink", "violet"]
    assert torch.equal(first.states[0], first.states[2])
    assert torch.equal(again.states[0], first.states[1])
    assert torch.allclose(first.states[:1], encode(["pink"]).states, atol=2e-3)


# The validator


class Features(nn.Module):
    """A classifier of toy size with the same parts as the real one; its answers are too sure."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 4, stride=4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 9)
        with torch.no_grad():
            self.fc.weight.mul_(30)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.fc(self.avgpool(self.conv(tiles).relu()).flatten(1))
        return answer


def test_calibration_lowers_the_likelihood_on_val_and_leaves_little_of_it_outside() -> None:
    train, val = tiny.split("train", 180), tiny.split("val", 90, seed=1)
    labels = torch.from_numpy(val.labels)
    before = symmetric_logits(Features(), val.images).clone()
    validator = calibrate(Features(), "resnet18", train, val)
    factors, offsets = vector_scaling(before, labels)
    calibrated = validator.logits(val.images)
    assert torch.allclose(calibrated, factors * before + offsets, atol=1e-3)
    assert F.cross_entropy(calibrated, labels) < F.cross_entropy(before, labels)
    raw = symmetric_logits(validator.model, val.images)
    factor = (raw - raw.mean(0)).std(0) / (before - before.mean(0)).std(0)
    assert factor.log().mean() == pytest.approx(0, abs=1e-3)  # the logits keep their size
    assert validator.temperature != 1.0
    outside = validator.distances(val.images) >= validator.ood_limit
    assert outside.float().mean() <= 0.02
    strange = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3)).astype(np.uint8)
    strange[..., 0], strange[..., 2] = 255, 0
    assert (validator.distances(strange) > validator.ood_limit).all()


def test_validator_and_judge_see_disjoint_halves() -> None:
    from pathsynth.training.validator import _half

    train = tiny.split("train", 91)
    even, odd = _half(train, "even"), _half(train, "odd")
    assert (len(even), len(odd)) == (46, 45)
    assert np.array_equal(even.images[3], train.images[6])
    assert np.array_equal(odd.images[3], train.images[7])
    assert _half(train, None) is train


def test_a_classifier_goes_on_from_a_saved_one(tmp_path: Path) -> None:
    saved = tiny.validator()
    with torch.no_grad():
        saved.model.get_parameter("conv1.weight").add_(1)
    saved.save(tmp_path / "saved")
    config = ValidatorConfig(
        kind="validator", architecture=saved.architecture, initial=tmp_path / "saved", optim=LINEAR
    )
    task = ValidatorTask(config, tiny.split("train", 9), tiny.split("val", 9))
    for name, weight in saved.model.named_parameters():
        assert torch.equal(task.model.get_parameter(name), weight.half().float())
    assert all(weight.requires_grad for weight in task.model.parameters())


def always(tissue: int) -> Validator:
    """A classifier that is sure of one tissue whatever it sees."""
    fixed = tiny.validator()
    with torch.no_grad():
        fixed.model.get_parameter("fc.weight").zero_()
        fixed.model.get_parameter("fc.bias").zero_()[tissue] = 12
    return fixed


def test_what_the_network_gets_wrong_is_drawn_more_often_as_last_seen(tmp_path: Path) -> None:
    always(2).save(tmp_path / "saved")
    config = ValidatorConfig(
        kind="validator",
        architecture="resnet18",
        initial=tmp_path / "saved",
        focus=0.5,
        label_smoothing=0,
        optim=LINEAR,
    )
    heard: list[str] = []
    train = tiny.split("train", 90)
    task = ValidatorTask(
        config, train, tiny.split("val", 9), lambda done, total, message: heard.append(message)
    )
    assert heard
    generator = torch.Generator().manual_seed(0)

    def drawn(tissue: int) -> tuple[float, float]:
        """How often a tissue is in the half that is drawn by loss, and in the other."""
        _, labels, where = task.batch(600, generator)
        assert torch.equal(labels, torch.from_numpy(train.labels)[where])
        by_loss, evenly = ((part == tissue).float().mean().item() for part in labels.split(300))
        return by_loss, evenly

    by_loss, evenly = drawn(2)
    assert by_loss < 0.02 < 0.05 < evenly < 0.2
    other = always(5).model
    for _ in range(3):
        task.loss(other, task.batch(600, generator), generator)
    assert drawn(5)[0] < 0.02
    assert drawn(2)[0] > 0.05


# Augmentation


def symmetries(tile: torch.Tensor) -> list[torch.Tensor]:
    turned = [torch.rot90(tile, k, dims=(1, 2)) for k in range(4)]
    return turned + [each.flip(2) for each in turned]


def test_every_symmetry_of_the_square_is_drawn_and_nothing_else() -> None:
    tile = torch.arange(3 * 4 * 4).float().view(3, 4, 4)
    drawn = dihedral(tile.expand(400, -1, -1, -1), torch.Generator().manual_seed(0))
    counts = [int((drawn == each).all(dim=(1, 2, 3)).sum()) for each in symmetries(tile)]
    assert sum(counts) == 400
    assert min(counts) > 25


def test_each_image_is_turned_by_itself_and_repeatably() -> None:
    tiles = torch.rand(8, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    first, again = (dihedral(tiles, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again)
    for before, after in zip(tiles, first, strict=True):
        assert any(torch.equal(after, each) for each in symmetries(before))


def test_no_stain_variation_is_the_identity() -> None:
    tiles = torch.rand(2, 3, 6, 6) * 2 - 1
    assert torch.equal(vary_stain(tiles, torch.Generator(), 0), tiles)


def test_stain_varies_within_range_and_leaves_the_texture_in_place() -> None:
    tiles = to_model_range(tiny.split("train", 9).images)
    varied = vary_stain(tiles, torch.Generator().manual_seed(0), 0.3)
    assert varied.shape == tiles.shape
    assert -1 <= varied.min() < varied.max() <= 1
    assert not torch.allclose(varied, tiles, atol=0.02)
    for before, after in zip(tiles, varied, strict=True):
        stacked = torch.stack([before.mean(0).flatten(), after.mean(0).flatten()])
        assert torch.corrcoef(stacked)[0, 1] > 0.9


def test_a_weaker_variation_changes_less_and_the_same_draw_repeats() -> None:
    tiles = to_model_range(tiny.split("train", 9).images)
    weak, strong, again = (
        vary_stain(tiles, torch.Generator().manual_seed(3), strength) for strength in (0.01, 0.3, 0.3)
    )
    assert torch.equal(strong, again)
    assert (weak - tiles).abs().mean() < 0.2 * (strong - tiles).abs().mean()


def test_as_many_tiles_are_disturbed_as_asked_for_each_in_its_own_way() -> None:
    tiles = np.repeat(tiny.split("train", 1).images, 400, axis=0)
    kept = tiles.copy()
    disturbed = disturb(tiles, torch.Generator().manual_seed(0), 0.25)
    assert np.array_equal(tiles, kept)
    changed = (disturbed != tiles).any(axis=(1, 2, 3))
    assert 70 <= changed.sum() <= 130
    assert len(np.unique(disturbed[changed], axis=0)) > 0.9 * changed.sum()
    assert np.array_equal(disturbed, disturb(tiles, torch.Generator().manual_seed(0), 0.25))
    untouched = torch.Generator().manual_seed(0)
    assert np.array_equal(tiles, disturb(tiles, untouched, 0))
    assert torch.equal(untouched.get_state(), torch.Generator().manual_seed(0).get_state())


def test_one_plain_colour_stays_one_plain_colour() -> None:
    plain = torch.tensor([0.6, -0.2, 0.4]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    varied = vary_stain(plain, torch.Generator().manual_seed(0), 0.3)
    assert varied.std(dim=(2, 3)).max() < 1e-6


def test_the_toy_task_fits_the_protocol() -> None:
    task: Task = ToyTask()
    assert isinstance(task.train, Split)
