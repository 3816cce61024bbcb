"""A Stable Diffusion base: training, adapters, the loop, and what is said when a checkpoint is missing.

The checkpoint is tiny and random, and lies on the disk as the published ones do.
"""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pathsynth import cli, stable_diffusion
from pathsynth.data import Split
from pathsynth.errors import TrainingError, WeightsError
from pathsynth.images import NATIVE_EDGE, to_native
from pathsynth.stable_diffusion import (
    LoraSettings,
    StableDiffusionGenerator,
    checkpoint_folder,
    encode,
    load_adapter,
    load_pipeline,
    model_hash,
)
from pathsynth.studio import GenerationRequest, Studio
from pathsynth.tissues import CODES, TISSUES
from pathsynth.training import read_config, start
from pathsynth.training import stable_diffusion as training
from pathsynth.training.engine import OptimConfig, Run
from pathsynth.training.stable_diffusion import StableDiffusionConfig, StableDiffusionTask
from pathsynth.verify import Prediction
from tests.fakes import probabilities_of, smooth_tile

FAT = TISSUES[0]
EDGE = 32
STEPS = 2
ROOT_OF_SOURCES = Path(__file__).parents[2]
START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """The four files of published checkpoints, with letters as vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789:;,.-"
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    files = {
        "vocab.json": json.dumps({word: i for i, word in enumerate(words)}),
        "merges.txt": "#version: 0.2\n",
        "special_tokens_map.json": json.dumps(special),
        "tokenizer_config.json": json.dumps(config),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def rename(path: Path, renamed: Callable[[str], str], **more: torch.Tensor) -> None:
    """Give the tensors of a file other names."""
    save_file(
        {renamed(name): value for name, value in load_file(path).items()} | more, path, {"format": "pt"}
    )


def write_checkpoint(folder: Path, predicts: str = "epsilon", channels: int = 4) -> Path:
    """A random checkpoint of 32 px with the names that the published files of Stable Diffusion 1.5 have."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=EDGE,
    )
    unet = UNet2DConditionModel(
        sample_size=EDGE // 2,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=predicts,
    )
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    write_tokenizer(folder / "tokenizer")
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    rename(folder / "text_encoder" / "model.safetensors", _published_text_name, **positions)
    rename(folder / "vae" / "diffusion_pytorch_model.safetensors", _published_vae_name)
    return folder


def _published_text_name(name: str) -> str:
    return f"text_model.{name.removeprefix('text_model.')}"


def _published_vae_name(name: str) -> str:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    return next((name.replace(new, before) for new, before in old.items() if new in name), name)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def velocity_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("velocity"), predicts="v_prediction")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def split(name: Any = "train", size: int = NATIVE_EDGE) -> Split:
    """Twenty-seven tiles, three of each tissue."""
    images = np.stack([smooth_tile(i, size) for i in range(27)])
    return Split(name, images, np.arange(27, dtype=np.int64) % 9)


def config(**changes: Any) -> StableDiffusionConfig:
    """A run of a few steps in float32, whose rate is high enough to see them."""
    optim = OptimConfig(
        steps=3, batch_size=2, learning_rate=0.05, warmup_steps=0, ema_decay=0.5, precision="float32"
    )
    values: dict[str, Any] = {
        "kind": "lora-stable-diffusion",
        "optim": optim,
        "resolution": EDGE,
        "rank": 4,
        "alpha": 8,
        "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
        "steps": STEPS,
        "validation_tiles": 5,
    }
    return StableDiffusionConfig.model_validate(values | changes)


def task_on(folder: Path, **changes: Any) -> StableDiffusionTask:
    return StableDiffusionTask(
        config(**changes), load_pipeline(str(folder)), str(folder), split(), split("val")
    )


def state_of(task: StableDiffusionTask) -> dict[str, torch.Tensor]:
    """Every tensor of network, autoencoder and text encoder, as a copy."""
    parts = {"unet": task.model, "vae": task.pipeline.vae, "text": task.pipeline.text_encoder}
    return {
        f"{part}.{k}": v.clone() for part, module in parts.items() for k, v in module.state_dict().items()
    }


@pytest.fixture(scope="session")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lora folder of a run of three steps, its weights made large enough to be seen in a picture."""
    task, out = task_on(checkpoint), tmp_path_factory.mktemp("run")
    run = Run(task, task.config.optim)
    for _ in run.steps():
        pass
    with torch.no_grad():
        for name, weight in run.averaged.named_parameters():
            if "lora_B" in name:
                weight.mul_(5)
    task.save(run.averaged, out)
    return out / "lora"


class FakeValidator:
    """Sees `tissue` in tiles of which `agrees` holds, by their place in the order of asking, else debris."""

    def __init__(self, tissue: str, agrees: Callable[[int], bool]) -> None:
        self.tissue, self.agrees = tissue, agrees
        self.seen: list[npt.NDArray[np.uint8]] = []

    def predict(self, tiles: npt.NDArray[np.uint8]) -> list[Prediction]:
        predictions = []
        for tile in tiles:
            code = self.tissue if self.agrees(len(self.seen)) else CODES[2]
            self.seen.append(tile)
            predictions.append(Prediction(code, 0.95, probabilities_of(code), 0.1))
        return predictions


class FakeWeights:
    """A folder of weights with nothing in it but its hash."""

    model = "0123456789ab"

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def has(self, component: str) -> bool:
        return False

    def path(self, name: str) -> Path:
        return Path(name)


def studio_on(base: Path, lora: Path | None, home: Path, validator: FakeValidator) -> Studio:
    studio = Studio(home=home, base=str(base), lora=lora)
    vars(studio).update(_validator=validator, weights=FakeWeights())
    return studio


def tiles_of(base: Path, lora: Path | None, seeds: Sequence[int] = (1,)) -> npt.NDArray[np.uint8]:
    generator = StableDiffusionGenerator.load(str(base), lora)
    generator.settings = generator.settings.model_copy(update={"steps": STEPS})
    return generator.propose(generator.context_of(FAT, FAT.label, _no_encoder, 0), seeds)


def _no_encoder() -> Any:
    raise AssertionError("the text encoder of the layout model must not be asked")


# The checkpoint


def test_every_weight_of_the_published_layout_is_loaded(checkpoint: Path) -> None:
    pipeline = load_pipeline(str(checkpoint))
    for part, file in (("text_encoder", "model"), ("vae", "diffusion_pytorch_model")):
        loaded = getattr(pipeline, part).state_dict()
        stored = load_file(checkpoint / part / f"{file}.safetensors")
        stored.pop("text_model.embeddings.position_ids", None)
        assert len(stored) == len(loaded)
        by_name = {
            _published_text_name(k) if part == "text_encoder" else _published_vae_name(k): k for k in loaded
        }
        assert all(torch.equal(loaded[by_name[name]], value) for name, value in stored.items())
    assert pipeline.safety_checker is None


def test_a_description_beyond_the_tissue_changes_the_context(checkpoint: Path) -> None:
    generator = StableDiffusionGenerator(load_pipeline(str(checkpoint)), LoraSettings(prompt_style="label"))
    plain = generator.context_of(FAT, FAT.label, _no_encoder, 0)
    more = generator.context_of(FAT, "with much blood", _no_encoder, 0)
    assert plain.states.shape == more.states.shape == (1, 77, 32)
    assert torch.equal(plain.states, encode(generator.pipeline, [FAT.label]).states)
    assert torch.equal(more.states, encode(generator.pipeline, [f"{FAT.label}; with much blood"]).states)
    assert not torch.equal(plain.states, more.states)


# Tiles


def test_the_same_seed_gives_the_same_bytes_whatever_is_made_beside_it(
    checkpoint: Path, adapter: Path
) -> None:
    together = tiles_of(checkpoint, adapter, (1, 2, 3))
    assert together.shape == (3, NATIVE_EDGE, NATIVE_EDGE, 3)
    assert together.dtype == np.uint8
    alone = [tiles_of(checkpoint, adapter, (seed,))[0] for seed in (1, 2, 3)]
    assert np.array_equal(together, np.stack(alone))
    assert not np.array_equal(together[0], together[1])


def test_the_originals_are_kept_and_the_tiles_are_made_from_them(checkpoint: Path) -> None:
    generator = StableDiffusionGenerator(load_pipeline(str(checkpoint)), LoraSettings(steps=STEPS))
    tiles = generator.propose(generator.context_of(FAT, FAT.label, _no_encoder, 0), (4, 9))
    assert sorted(generator.originals) == [4, 9]
    assert {picture.shape for picture in generator.originals.values()} == {(EDGE, EDGE, 3)}
    assert np.array_equal(tiles, np.stack([to_native(generator.originals[seed]) for seed in (4, 9)]))


def test_pictures_are_made_at_the_resolution_of_the_adapter(checkpoint: Path) -> None:
    generator = StableDiffusionGenerator(
        load_pipeline(str(checkpoint)), LoraSettings(steps=STEPS, resolution=2 * EDGE)
    )
    generator.propose(generator.context_of(FAT, FAT.label, _no_encoder, 0), (4,))
    assert generator.originals[4].shape == (2 * EDGE, 2 * EDGE, 3)


def test_making_a_picture_can_be_cancelled_between_steps(checkpoint: Path) -> None:
    generator = StableDiffusionGenerator(load_pipeline(str(checkpoint)), LoraSettings(steps=10))
    heard: list[int] = []

    def on_step() -> None:
        heard.append(len(heard))
        if len(heard) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generator.propose(generator.context_of(FAT, FAT.label, _no_encoder, 0), (4,), on_step)
    assert len(heard) == 3


# Training


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_steps_change_only_the_adapter(
    checkpoint: Path, velocity_checkpoint: Path, predicts: str, checkpointing: bool
) -> None:
    folder = checkpoint if predicts == "epsilon" else velocity_checkpoint
    task = task_on(folder, gradient_checkpointing=checkpointing)
    before = state_of(task)
    run = Run(task, task.config.optim)
    steps = run.steps()
    losses = [next(steps).loss for _ in range(2)]
    assert all(np.isfinite(losses))
    after = state_of(task)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if "lora_" in name}


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_the_loss_is_zero_for_a_network_that_predicts_what_the_checkpoint_does(
    checkpoint: Path, velocity_checkpoint: Path, predicts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_on(checkpoint if predicts == "epsilon" else velocity_checkpoint)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(task, "_latents", lambda pictures, device, generator: latents)

    class Oracle(nn.Module):
        """Works the noise out of the noisy latents, as no network can, and predicts that or the velocity."""

        def __init__(self, answer: str) -> None:
            super().__init__()
            self.answer, self.weight = answer, nn.Parameter(torch.zeros(()))

        def forward(self, noisy: torch.Tensor, times: torch.Tensor, **others: Any) -> tuple[torch.Tensor]:
            signal, noise_part = (x.sqrt().view(-1, 1, 1, 1).float() for x in (kept[times], 1 - kept[times]))
            noise = (noisy - signal * latents) / noise_part
            return (noise if self.answer == "epsilon" else signal * noise - noise_part * latents,)

    batch = task.batch(3, torch.Generator().manual_seed(3))
    right = float(task.loss(Oracle(predicts), batch, torch.Generator().manual_seed(4)))
    other = "v_prediction" if predicts == "epsilon" else "epsilon"
    wrong = float(task.loss(Oracle(other), batch, torch.Generator().manual_seed(4)))
    assert right == pytest.approx(0, abs=1e-6)
    assert wrong > 0.1


def test_tiles_are_enlarged_and_lose_their_text_as_often_as_configured(checkpoint: Path) -> None:
    task = task_on(checkpoint, drop_text=0.0, prompt_style="label")
    batch = task.batch(64, torch.Generator().manual_seed(1))
    assert batch.pictures.shape == (64, 3, EDGE, EDGE)
    assert -1 <= float(batch.pictures.min()) < float(batch.pictures.max()) <= 1
    assert set(batch.texts.tolist()) == set(range(9))
    always = task_on(checkpoint, drop_text=1.0).batch(64, torch.Generator().manual_seed(1))
    assert set(always.texts.tolist()) == {9}
    half = task_on(checkpoint, drop_text=0.5).batch(400, torch.Generator().manual_seed(1))
    assert 150 < int((half.texts == 9).sum()) < 250


@pytest.mark.parametrize("style", ["label", "domain"])
def test_every_tissue_is_conditioned_on_its_own_prompt(checkpoint: Path, style: str) -> None:
    task = task_on(checkpoint, prompt_style=style, drop_text=0.0)
    heard: list[torch.Tensor] = []

    def listen(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        heard.append(named["encoder_hidden_states"])

    task.model.register_forward_pre_hook(listen, with_kwargs=True)
    batch = task.batch(9, torch.Generator().manual_seed(1))
    task.loss(task.model, batch, torch.Generator().manual_seed(2))
    tissues = [TISSUES[i] for i in batch.texts.tolist()]
    said = [tissue.label if style == "label" else tissue.prompt for tissue in tissues]
    expected = torch.cat([encode(task.pipeline, [text]).states for text in said])
    assert torch.allclose(heard[0], expected, atol=1e-5)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(checkpoint: Path, tmp_path: Path) -> None:
    whole = Run(task := task_on(checkpoint), task.config.optim)
    end = [state.loss for state in whole.steps()][-1]
    first = Run(task := task_on(checkpoint), task.config.optim)
    steps = first.steps()
    next(steps), next(steps)
    first.save(tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["model"].keys() == {name for name in task.model.state_dict() if "lora_" in name}
    second = Run(task := task_on(checkpoint), task.config.optim)
    second.restore(tmp_path / "checkpoint.pt")
    assert [state.loss for state in second.steps()] == [end]
    own, other = whole.averaged.state_dict(), second.averaged.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in own.items())


def test_a_checkpoint_of_other_layers_is_not_resumed(checkpoint: Path, tmp_path: Path) -> None:
    few = Run(task := task_on(checkpoint, target_modules=["to_q"]), task.config.optim)
    next(few.steps())
    few.save(tmp_path / "few.pt")
    more = Run(task := task_on(checkpoint), task.config.optim)
    with pytest.raises(TrainingError, match="cannot be resumed"):
        more.restore(tmp_path / "few.pt")


def test_the_average_shares_the_frozen_weights_and_no_others(checkpoint: Path) -> None:
    run = Run(task := task_on(checkpoint), task.config.optim)
    averaged = dict(run.averaged.named_parameters())
    shared = {n for n, w in task.model.named_parameters() if averaged[n].data_ptr() == w.data_ptr()}
    assert shared == {name for name in averaged if "lora_" not in name}


# The adapter


def test_the_adapter_reloads_as_it_was_and_changes_the_tiles(checkpoint: Path, tmp_path: Path) -> None:
    task = task_on(checkpoint)
    with torch.no_grad():
        for name, weight in task.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    task.save(task.model, tmp_path)
    stored = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    reloaded, base = load_pipeline(str(checkpoint)), load_pipeline(str(checkpoint))
    settings = load_adapter(reloaded, tmp_path / "lora")
    assert settings == LoraSettings(
        base=str(checkpoint), resolution=EDGE, prompt_style="domain", steps=STEPS, guidance=7.5
    )
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    context = encode(base, [FAT.prompt]).states
    with torch.inference_mode():
        trained, again, bare = (
            unet(noisy, torch.tensor([500]), context, return_dict=False)[0]
            for unet in (task.model, reloaded.unet, base.unet)
        )
    assert torch.allclose(
        trained, again, atol=2e-3
    )  # half precision; alpha is twice the rank and must return
    assert float((trained - bare).abs().max()) > 0.05


def test_an_adapter_changes_the_tiles_and_the_model_hash(checkpoint: Path, adapter: Path) -> None:
    assert not np.array_equal(tiles_of(checkpoint, None), tiles_of(checkpoint, adapter))
    hashes = {
        model_hash(validator, str(checkpoint), lora)
        for validator in ("0123456789ab", "ba9876543210")
        for lora in (None, adapter)
    }
    assert len(hashes) == 4
    assert all(len(each) == 12 for each in hashes)


def test_an_adapter_for_another_network_is_refused(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no LoRA adapter"):
        load_adapter(load_pipeline(str(checkpoint)), tmp_path)
    other = tmp_path / "unprefixed"
    shutil.copytree(adapter, other)
    rename(other / "pytorch_lora_weights.safetensors", lambda name: name.removeprefix("unet."))
    with pytest.raises(WeightsError, match="no layers for its network"):
        load_adapter(load_pipeline(str(checkpoint)), other)
    wide = tmp_path / "wide"
    shutil.copytree(adapter, wide)
    file = wide / "pytorch_lora_weights.safetensors"
    doubled = {name: torch.cat([value, value], dim=1) for name, value in load_file(file).items()}
    save_file(doubled, file, {"format": "pt"})
    with pytest.raises(WeightsError, match="does not fit"):
        load_adapter(load_pipeline(str(checkpoint)), wide)


# The loop and the commands


def test_the_loop_keeps_what_the_validator_agrees_with_at_full_resolution(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    validator = FakeValidator(FAT.code, lambda asked: asked % 2 == 1)
    studio = studio_on(checkpoint, adapter, tmp_path, validator)
    request = GenerationRequest.checked(description=FAT.label, count=2, seed=7, max_attempts=10)
    result = studio.generate(request)
    assert result.verified
    assert [tile.seed for tile in result.tiles] == [8, 10]
    assert [attempt.seed for attempt in result.rejected] == [7, 9]
    for tile in result.tiles:
        picture = studio.store.get(tile.image_id).pixels()
        assert picture.shape == (EDGE, EDGE, 3)
        assert tile.size == EDGE
        assert np.array_equal(to_native(picture), validator.seen[tile.seed - request.seed])
    assert {tile.model for tile in result.tiles} == {model_hash(FakeWeights.model, str(checkpoint), adapter)}


def test_nothing_is_kept_when_the_validator_never_agrees(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    studio = studio_on(checkpoint, adapter, tmp_path, FakeValidator(FAT.code, lambda asked: False))
    result = studio.generate(GenerationRequest.checked(description=FAT.label, max_attempts=2))
    assert (result.verified, result.tiles, result.attempts) == (False, [], 2)
    assert studio.store.ids() == ()


CONFIG = textwrap.dedent("""
    kind = "lora-stable-diffusion"
    resolution = 32
    rank = 4
    alpha = 4
    target_modules = ["to_q", "to_v"]
    prompt_style = "label"
    steps = 2
    validation_tiles = 4
    [optim]
    steps = 2
    batch_size = 2
    learning_rate = 1e-2
    warmup_steps = 0
""")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load_split", split)


@pytest.mark.usefixtures("tiny_data")
def test_what_the_command_line_trains_it_generates_with(
    checkpoint: Path,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATHSYNTH_HOME", str(tmp_path / "home"))
    run = tmp_path / "run"
    arguments = ["--base", str(checkpoint), "--config", str(config_file), "--out", str(run), "--json"]
    assert cli.main(["train", "lora", *arguments]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["step"], summary["out"]) == (2, str(run))
    assert summary["val_loss"] > 0
    assert {path.name for path in (run / "lora").iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "settings.json",
    }

    monkeypatch.setattr("pathsynth.weights.Weights", FakeWeights)
    validator = FakeValidator(FAT.code, lambda asked: True)
    monkeypatch.setattr("pathsynth.validator.Validator.load", lambda folder, strangeness: validator)
    models = ["--base", str(checkpoint), "--lora", str(run / "lora")]
    assert cli.main(["generate", FAT.label, *models, "--seed", "5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verified"], answer["tiles"][0]["seed"], answer["tiles"][0]["size"]) == (True, 5, EDGE)
    assert np.array_equal(validator.seen[0], tiles_of(checkpoint, run / "lora", (5,))[0])


def test_two_processes_train_one_adapter(checkpoint: Path, config_file: Path, tmp_path: Path) -> None:
    script = tmp_path / "launched.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from pathlib import Path

            import torch
            from accelerate import PartialState

            from pathsynth import cli
            from pathsynth.training import stable_diffusion as training
            from pathsynth.training.engine import Run
            from tests.pathsynth.test_stable_diffusion import split

            def steps(run, take=Run.steps):
                draws, state = run.task.batch, PartialState()
                seen = []
                run.task.batch = lambda *given: seen.append(draws(*given)) or seen[-1]
                yield from take(run)
                trained = {n: w for n, w in run.task.model.named_parameters() if w.requires_grad}
                kept = {"processes": state.num_processes, "drawn": seen[0].pictures, "trained": trained}
                torch.save(kept, Path(__file__).with_suffix(f".{state.process_index}"))

            Run.steps = steps
            training.load_split = split
            sys.exit(cli.main(sys.argv[1:]))
        """),
        encoding="utf-8",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(script), "train", "lora", "--base", str(checkpoint)]
    command += ["--config", str(config_file), "--out", str(tmp_path / "run"), "--max-minutes", "5", "--json"]
    # What `accelerate launch` tells the processes that it starts.
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
    }
    shared |= {"PYTHONPATH": str(ROOT_OF_SOURCES), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    assert json.loads(said[0][0])["step"] == 2
    assert said[1][0] == ""
    assert (tmp_path / "run" / "lora" / "settings.json").is_file()
    first, second = (torch.load(script.with_suffix(f".{rank}")) for rank in range(2))
    assert (first["processes"], second["processes"]) == (2, 2)
    assert not torch.equal(first["drawn"], second["drawn"])
    assert all(torch.equal(weight, second["trained"][name]) for name, weight in first["trained"].items())


def test_the_example_configuration_is_valid() -> None:
    path = ROOT_OF_SOURCES / "pathsynth" / "training" / "configs" / "lora-stable-diffusion.toml"
    example = read_config(path, StableDiffusionConfig)
    assert (example.resolution, example.prompt_style) == (512, "domain")


# What goes wrong


def sentence(error: BaseException) -> str:
    """The text of an error, which must be one line."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def broken(checkpoint: Path, folder: Path, how: str) -> Path:
    """A copy of the checkpoint with something wrong about it."""
    shutil.copytree(checkpoint, folder)
    index = folder / "model_index.json"
    if how == "no index":
        index.unlink()
    elif how == "index is no JSON":
        index.write_text("{", encoding="utf-8")
    elif how == "another pipeline":
        known = json.loads(index.read_text(encoding="utf-8"))
        index.write_text(json.dumps(known | {"_class_name": "FluxPipeline"}), encoding="utf-8")
    elif how == "no vae":
        shutil.rmtree(folder / "vae")
    elif how == "only pickles":
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_suffix(".bin"))
    elif how == "cut short":
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    elif how.startswith("random weight"):
        file = next((folder / how.rsplit(maxsplit=1)[-1]).glob("*.safetensors"))
        weights = load_file(file)
        weights.pop(max(name for name in weights if name.endswith("weight")))
        save_file(weights, file, {"format": "pt"})
    elif how == "no configuration":
        (folder / "unet" / "config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no index", "has no model_index.json"),
        ("index is no JSON", "cannot be read"),
        ("another pipeline", "holds a FluxPipeline"),
        ("no vae", "lacks vae"),
        ("only pickles", "no safetensors weights for unet"),
        ("cut short", "cannot be loaded"),
        ("no configuration", "cannot be loaded"),
        ("random weight in unet", "unet lacks"),
        ("random weight in vae", "vae lacks"),
        ("random weight in text_encoder", "text_encoder lacks"),
    ],
)
def test_an_odd_folder_is_one_sentence(checkpoint: Path, tmp_path: Path, how: str, said: str) -> None:
    folder = broken(checkpoint, tmp_path / "odd", how)
    with pytest.raises(WeightsError, match=said) as caught:
        load_pipeline(str(folder))
    assert str(folder) in sentence(caught.value)


def test_an_inpainting_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "inpainting", channels=9)
    with pytest.raises(WeightsError, match="takes 9 channels and not the 4"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("base", ["", "no-such-folder", "/no/such/folder", "../no/folder", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_not_looked_for_on_the_hub(
    base: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stable_diffusion, "HfApi", _no_encoder)
    with pytest.raises(WeightsError) as caught:
        checkpoint_folder(base)
    assert "folder" in sentence(caught.value)


def test_a_file_is_no_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(WeightsError, match="is a file"):
        checkpoint_folder(str(tmp_path / "model.safetensors"))


@pytest.mark.usefixtures("tiny_data")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resolution": 33}, "multiple of 2"),
        ({"target_modules": ["attention.nothing"]}, "cannot be put on attention.nothing"),
    ],
    ids=["resolution", "modules"],
)
def test_a_configuration_that_does_not_fit_the_checkpoint_is_one_sentence(
    checkpoint: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(TrainingError, match=said) as caught:
        task_on(checkpoint, **changes)
    sentence(caught.value)


def test_a_checkpoint_that_predicts_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="predicts sample"):
        task_on(write_checkpoint(tmp_path / "sample", predicts="sample"))


def test_base_and_configuration_must_belong_together(
    checkpoint: Path, config_file: Path, tmp_path: Path
) -> None:
    layout = tmp_path / "layout.toml"
    layout.write_text('kind = "lora"\n', encoding="utf-8")

    def started(kind: str, path: Path, base: str | None) -> str:
        with pytest.raises(TrainingError) as caught:
            start(kind, path, tmp_path / "run", False, None, lambda done, total, message: None, base)
        return sentence(caught.value)

    assert "give --base with lora only" in started("validator", config_file, str(checkpoint))
    assert "is for `lora`, not for `lora-stable-diffusion`" in started("lora", layout, str(checkpoint))
    assert "give that with --base" in started("lora", config_file, None)


def test_an_adapter_without_its_checkpoint_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "fat", "--lora", str(tmp_path)]) == 1
    assert "give that one with --base" in capsys.readouterr().err


# The hub


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def hub_at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield server.getsockname()[1]


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("hub", ["closed", "silent"])
def test_without_a_hub_an_id_is_one_sentence_soon(
    hub: str, silent_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stable_diffusion, "HUB_SECONDS", 0.2)
    hub_at(silent_port if hub == "silent" else 9, monkeypatch)
    answered = threading.Event()

    def ask() -> None:
        assert cli.main(["generate", FAT.label, "--base", "owner/name"]) == 1
        answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(60)
    assert answered.is_set()
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    said = [line for line in errors.splitlines() if line.startswith("pathsynth: ")]
    assert len(said) == 1
    assert "no checkpoint of that name could be fetched" in said[0]


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for."""

    folder: Path
    sha = "0" * 40
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        names = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()]
        if "/resolve/" in self.path:
            name = self.path.split("/resolve/")[1].partition("/")[2]
            content = (self.folder / name).read_bytes()
        else:
            siblings = [{"rfilename": name} for name in names]
            known = {"id": "owner/name", "sha": self.sha, "siblings": siblings, "private": False, "tags": []}
            content = json.dumps(known | {"downloads": 0, "likes": 0}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFFFFFF:x}"')
        self.send_header("X-Repo-Commit", self.sha)
        self.end_headers()
        if body:
            self.wfile.write(content)


def test_a_hub_id_is_fetched_once_and_then_used_offline(
    checkpoint: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    shutil.copytree(checkpoint, served)
    for unwanted in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.bin", "whole.safetensors"):
        (served / unwanted).write_bytes(b"not needed")
    Hub.folder, Hub.asked = served, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub_at(server.server_address[1], monkeypatch)
        folder = checkpoint_folder("owner/name")
        server.shutdown()
    assert hub_cache in folder.parents
    fetched = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert fetched == {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}
    assert model_hash("", "owner/name", None) == model_hash("", str(checkpoint), None)
    count = len(Hub.asked)
    hub_at(9, monkeypatch)
    assert checkpoint_folder("owner/name") == folder
    assert np.array_equal(_first_tile("owner/name"), _first_tile(str(checkpoint)))
    assert len(Hub.asked) == count


def _first_tile(base: str) -> npt.NDArray[np.uint8]:
    generator = StableDiffusionGenerator(load_pipeline(base), LoraSettings(steps=STEPS))
    return generator.propose(generator.context_of(FAT, FAT.label, _no_encoder, 0), (1,))
