"""The generator, with weights of toy size: the same bytes however and wherever a tile is made."""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pathsynth.errors import WeightsError
from pathsynth.generator import (
    CONTEXTS_FILE,
    WORDINGS_FILE,
    Generator,
    load_contexts,
    load_sampling,
    load_wordings,
    save_wordings,
)
from pathsynth.text import TextContext, TextEncoder, joined
from pathsynth.tissues import CODES, TISSUES, by_code
from pathsynth.turning import turned
from pathsynth.validator import Validator
from pathsynth.weights import Weights, write_manifest
from tests import tiny

ROOT_OF_SOURCES = Path(__file__).parents[2]
UNET = "layout/unet/diffusion_pytorch_model.safetensors"
LORA = "lora/default/pytorch_lora_weights.safetensors"


def no_encoder() -> TextEncoder:
    raise AssertionError("the text encoder was asked for")


@pytest.fixture(scope="module")
def generator(tiny_weights: Path) -> Generator:
    return Generator.load(Weights(tiny_weights))


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_tile_among_nine_has_the_bytes_it_has_alone(at_once: int) -> None:
    generator, context = tiny.generator(), tiny.contexts(1, seed=5)
    generator.at_once = at_once
    nine = generator.propose(context, range(10, 19))
    assert nine.shape == (9, 28, 28, 3)
    assert nine.dtype == np.uint8
    for i in (0, 4, 8):
        assert np.array_equal(generator.propose(context, [10 + i])[0], nine[i])
    assert len({tile.tobytes() for tile in nine}) == 9


def test_another_context_gives_another_tile() -> None:
    generator = tiny.generator()
    one, other = (generator.propose(tiny.contexts(1, seed), [1]) for seed in (5, 6))
    assert not np.array_equal(one, other)


def test_each_of_several_tiles_has_its_own_text() -> None:
    generator = tiny.generator()
    texts = [tiny.contexts(1, seed) for seed in (5, 6, 7)]
    alone = [generator.propose(text, [1])[0] for text in texts]
    assert np.array_equal(generator.propose(joined(texts), [1, 1, 1]), np.stack(alone))
    assert len({tile.tobytes() for tile in alone}) == 3


def test_the_shipped_networks_make_the_same_tiles_side_by_side(encoder: TextEncoder) -> None:
    generator = Generator.load(Weights())
    texts = [generator.context_of(by_code("MUC"), "mucus", lambda: encoder, seed) for seed in range(4)]
    made = []
    for generator.at_once in (1, 2, 4):
        made.append(generator.propose(joined(texts), range(4), tissue=by_code("MUC")))
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])


@pytest.mark.parametrize("at_once", [1, 2])
def test_every_denoising_step_can_be_stopped(at_once: int) -> None:
    generator, steps = tiny.generator(), 0
    generator.at_once = at_once

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == tiny.STEPS + 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generator.propose(tiny.contexts(1), [1, 2, 3], on_step=stop)
    assert steps == tiny.STEPS + 2


def test_loading_merges_the_adapter_and_reads_its_settings(generator: Generator, tiny_weights: Path) -> None:
    assert (generator.steps, generator.guidance) == (tiny.STEPS, 2.0)
    assert generator.guidance_interval == (0.1, 0.9)
    assert not any("lora" in name for name in generator.pipeline.unet.state_dict())
    stored = load_file(tiny_weights / UNET)
    merged = generator.pipeline.unet.state_dict()
    changed = {name for name, weight in merged.items() if not torch.equal(weight, stored[name])}
    assert changed
    assert all(name.endswith(("to_q.weight", "to_v.weight")) for name in changed)


def with_sketches(tiny_weights: Path, folder: Path) -> Path:
    """Weights whose tiles start from sketches of 7 px."""
    shutil.copytree(tiny_weights, folder)
    tiny.sketcher().save_pretrained(folder / "sketch")
    settings = {"steps": 3, "guidance": 1.0, "stochastic": True, "sketch": {"steps": 2, "guidance": 1.5}}
    (folder / "lora" / "default" / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    write_manifest(folder, {"sketch": {}})
    return folder


def test_tiles_start_from_sketches_where_settings_say_so(tiny_weights: Path, tmp_path: Path) -> None:
    folder = with_sketches(tiny_weights, tmp_path / "weights")
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    context = tiny.contexts(1)
    tiles = Generator.load(Weights(folder)).propose(context, [3, 4], on_step=count)
    assert steps == 2 * (2 + 2)
    again = Generator.load(Weights(folder)).propose(context, [4])
    assert np.array_equal(tiles[1], again[0])
    path = folder / "lora" / "default" / "settings.json"
    values = json.loads(path.read_bytes())
    values["sketch"]["clear"] = True
    path.write_text(json.dumps(values), encoding="utf-8")
    write_manifest(folder, {})
    assert not np.array_equal(Generator.load(Weights(folder)).propose(context, [4]), again)
    values["sketch"] |= {"clear": False, "stochastic": True}
    path.write_text(json.dumps(values), encoding="utf-8")
    write_manifest(folder, {})
    assert not np.array_equal(Generator.load(Weights(folder)).propose(context, [4]), again)
    tiny.sketcher(seed=8).save_pretrained(folder / "sketch")
    values["sketch"]["stochastic"] = False
    path.write_text(json.dumps(values), encoding="utf-8")
    write_manifest(folder, {})
    assert not np.array_equal(Generator.load(Weights(folder)).propose(context, [4]), again)


def test_tiles_are_turned_by_their_seeds_where_settings_say_so(tiny_weights: Path, tmp_path: Path) -> None:
    context, seeds = tiny.contexts(1), [4, 5, 6]
    plain = Generator.load(Weights(tiny_weights)).propose(context, seeds)
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    path = folder / "lora" / "default" / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"turned": True}), encoding="utf-8")
    write_manifest(folder, {})
    result = Generator.load(Weights(folder)).propose(context, seeds)
    assert np.array_equal(result, [turned(tile, seed) for tile, seed in zip(plain, seeds, strict=True)])
    assert not np.array_equal(result, plain)


def test_sketches_that_are_not_there_are_one_sentence(tiny_weights: Path, tmp_path: Path) -> None:
    folder = with_sketches(tiny_weights, tmp_path / "weights")
    shutil.rmtree(folder / "sketch")
    write_manifest(folder, {})
    with pytest.raises(WeightsError, match="sketch"):
        Generator.load(Weights(folder))
    adapter = folder / "lora" / "default"
    contexts = load_contexts(folder / CONTEXTS_FILE)
    with pytest.raises(WeightsError, match="starts from sketches"):
        Generator.adapted(folder / "layout", adapter, load_sampling(adapter), contexts)


def test_settings_say_whether_steps_draw_fresh_noise(
    generator: Generator, tiny_weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    settings = folder / "lora" / "default" / "settings.json"
    settings.write_text(json.dumps({"steps": 3, "guidance": 1.0, "stochastic": True}), encoding="utf-8")
    write_manifest(folder, {})
    afresh = Generator.load(Weights(folder))
    assert afresh.pipeline.scheduler.config.stochastic_sampling
    assert not generator.pipeline.scheduler.config.stochastic_sampling
    first, again = (afresh.propose(tiny.contexts(1), [3]) for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("name", ["adipose", "ADI", "Fat cells ", "adipose tissue"])
def test_a_description_that_only_names_the_tissue_needs_no_encoder(generator: Generator, name: str) -> None:
    context = generator.context_of(TISSUES[0], name, no_encoder, 0)
    assert len(context) == 1
    assert torch.equal(
        context.states, generator.context_of(TISSUES[0], TISSUES[0].prompt, no_encoder, 0).states
    )
    other = generator.context_of(TISSUES[1], TISSUES[1].label, no_encoder, 0)
    assert not torch.equal(context.states, other.states)


def test_other_words_reach_the_context_after_the_prompt(generator: Generator, encoder: TextEncoder) -> None:
    tissue = by_code("TUM")
    context = generator.context_of(tissue, "very dark stain", lambda: encoder, 0)
    expected = encoder.encode([f"{tissue.prompt}; very dark stain"])
    assert torch.equal(context.states, expected.states)
    plain = generator.context_of(tissue, tissue.label, no_encoder, 0)
    assert context.mask.sum() > plain.mask.sum()


def test_the_name_of_another_tissue_is_a_description(generator: Generator, encoder: TextEncoder) -> None:
    asked = []

    def counted() -> TextEncoder:
        asked.append(1)
        return encoder

    generator.context_of(by_code("TUM"), "mucus", counted, 0)
    assert asked


def test_stored_contexts_are_those_of_the_prompts_and_of_the_empty_text(
    tiny_weights: Path, encoder: TextEncoder
) -> None:
    contexts = load_contexts(tiny_weights / CONTEXTS_FILE)
    assert len(contexts) == len(CODES) + 1
    assert contexts.mask[-1].sum() == 2
    expected = encoder.encode([tissue.prompt for tissue in TISSUES] + [""])
    assert torch.equal(contexts.mask, expected.mask)
    assert torch.allclose(contexts.states, expected.states, atol=2e-3)


def test_a_tissue_alone_draws_a_wording_of_it_by_its_seed(
    generator: Generator, encoder: TextEncoder, no_wording_is_missing: dict[str, list[str]]
) -> None:
    drawing = Generator(
        generator.pipeline, tiny.contexts(len(TISSUES) + 1), tiny.STEPS, wordings=no_wording_is_missing
    )
    tissue = by_code("LYM")
    possible = encoder.encode([f"{tissue.prompt}; {each}" for each in no_wording_is_missing["LYM"]]).states
    drawn = [drawing.context_of(tissue, "lymphocytes", lambda: encoder, seed).states for seed in range(40)]
    found = [[torch.allclose(one, each, atol=1e-5) for each in possible].index(True) for one in drawn]
    assert set(found) == set(range(len(possible)))
    again = drawing.context_of(tissue, "lymphocytes", lambda: encoder, 3)
    assert torch.equal(again.states, drawn[3])
    described = drawing.context_of(tissue, "flat", lambda: encoder, 3)
    assert torch.equal(described.states, encoder.encode([f"{tissue.prompt}; flat"]).states)


@pytest.fixture
def no_wording_is_missing() -> dict[str, list[str]]:
    return {code: ["dark stain, violet", "pale stain, many nuclei", "flat, very smooth"] for code in CODES}


def test_wordings_come_back_as_they_were(tmp_path: Path, no_wording_is_missing: dict[str, list[str]]) -> None:
    save_wordings(tmp_path / WORDINGS_FILE, no_wording_is_missing)
    assert load_wordings(tmp_path / WORDINGS_FILE) == no_wording_is_missing


@pytest.mark.parametrize(
    "damage", ["absent", "garbage", "cut short", "not compressed", "a tissue without a wording", "numbers"]
)
def test_damaged_wordings_are_named(
    tmp_path: Path, no_wording_is_missing: dict[str, list[str]], damage: str
) -> None:
    path = tmp_path / WORDINGS_FILE
    contents = {
        "garbage": "{",
        "a tissue without a wording": json.dumps(no_wording_is_missing | {"MUC": []}),
        "numbers": json.dumps(no_wording_is_missing | {"MUC": [3]}),
    }
    if damage in contents:
        path.write_bytes(gzip.compress(contents[damage].encode("utf-8")))
    if damage == "cut short":
        path.write_bytes(gzip.compress(b"{}")[:-6])
    if damage == "not compressed":
        path.write_text(json.dumps(no_wording_is_missing), encoding="utf-8")
    with pytest.raises(WeightsError, match="wordings"):
        load_wordings(path)


PROPOSE = """
    import hashlib, sys
    from pathlib import Path
    from pathsynth.generator import Generator
    from pathsynth.text import TextEncoder
    from pathsynth.tissues import by_code
    from pathsynth.validator import Validator
    from pathsynth.weights import Weights
    weights = Weights(Path(sys.argv[1]))
    generator = Generator.load(weights)
    context = generator.context_of(by_code("TUM"), "very dark stain", TextEncoder, 0)
    tiles = generator.propose(context, [1, 2, 3])
    assert len(Validator.load(weights.path("validator")).predict(tiles)) == 3
    Path(sys.argv[2]).write_text(hashlib.sha256(tiles.tobytes()).hexdigest(), encoding="utf-8")
"""


def test_fresh_processes_make_the_same_bytes_and_print_nothing(
    generator: Generator, encoder: TextEncoder, tiny_weights: Path, tmp_path: Path
) -> None:
    code = "\n".join(line.strip() for line in PROPOSE.splitlines())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tiny_weights), str(tmp_path / name)],
            cwd=ROOT_OF_SOURCES,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for process in started:
        assert process.communicate(timeout=600) == ("", "")
        assert process.returncode == 0
    one, two = ((tmp_path / name).read_text(encoding="utf-8") for name in ("one", "two"))
    context = generator.context_of(by_code("TUM"), "very dark stain", lambda: encoder, 0)
    here = generator.propose(context, [1, 2, 3])
    assert one == two == hashlib.sha256(here.tobytes()).hexdigest()


def rewrite(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Damage that changes the tensors of a file and leaves it a valid one."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return damage


def settings(**values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "lora/default/settings.json").write_text(
        json.dumps(values), encoding="utf-8"
    )


def drop_first(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[min(tensors)]


def misname(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"elsewhere.{name}"] = tensors.pop(name)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no layout": lambda folder: shutil.rmtree(folder / "layout"),
    "no index": lambda folder: (folder / "layout/model_index.json").unlink(),
    "index is no JSON": lambda folder: (folder / "layout/model_index.json").write_bytes(b"{"),
    "index of another kind": lambda folder: (folder / "layout/model_index.json").write_bytes(b"[]"),
    "no configuration": lambda folder: (folder / "layout/unet/config.json").unlink(),
    "configuration is no JSON": lambda folder: (folder / "layout/unet/config.json").write_bytes(b"\xff"),
    "no scheduler": lambda folder: shutil.rmtree(folder / "layout/scheduler"),
    "no network": lambda folder: (folder / UNET).unlink(),
    "garbage for a network": lambda folder: (folder / UNET).write_bytes(b"garbage" * 100),
    "half a network": lambda folder: (folder / UNET).write_bytes((folder / UNET).read_bytes()[:5000]),
    "a network lacks a weight": rewrite(UNET, drop_first),
    "no adapter": lambda folder: (folder / LORA).unlink(),
    "garbage for an adapter": lambda folder: (folder / LORA).write_bytes(b"garbage" * 100),
    "an adapter for another network": rewrite(LORA, misname),
    "no settings": lambda folder: (folder / "lora/default/settings.json").unlink(),
    "settings without steps": settings(guidance=2.0),
    "settings of no steps": settings(steps=0, guidance=2.0),
    "guided beyond noise": settings(steps=2, guidance=2.0, guidance_interval=[0.1, 1.1]),
    "no step after the sketch": settings(steps=1, guidance=1.0, sketch={"steps": 2}),
    "no contexts": lambda folder: (folder / CONTEXTS_FILE).unlink(),
    "garbage for contexts": lambda folder: (folder / CONTEXTS_FILE).write_bytes(b"garbage"),
    "too few contexts": rewrite(CONTEXTS_FILE, lambda t: t.update({k: v[:3].clone() for k, v in t.items()})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_part_that_the_manifest_vouches_for_is_one_sentence(
    damage: Callable[[Path], object], tiny_weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    damage(folder)
    write_manifest(folder, {})
    with pytest.raises(WeightsError, match="cannot be loaded") as caught:
        Generator.load(Weights(folder))
    assert_one_sentence(caught, capfd)


VALIDATOR_DAMAGES: dict[str, Callable[[Path], object]] = {
    "no network": lambda folder: (folder / "model.safetensors").unlink(),
    "garbage for a network": lambda folder: (folder / "model.safetensors").write_bytes(b"garbage" * 100),
    "a weight is missing": rewrite("model.safetensors", lambda tensors: tensors.pop("fc.weight")),
    "a weight too many": rewrite("model.safetensors", lambda t: t.update({"more": torch.zeros(1)})),
    "no statistics": rewrite("model.safetensors", lambda tensors: tensors.pop("ood.means")),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "configuration lacks the temperature": lambda folder: (folder / "config.json").write_text(
        '{"architecture": "resnet18", "ood_limit": 1}', encoding="utf-8"
    ),
}


@pytest.mark.parametrize("damage", VALIDATOR_DAMAGES.values(), ids=VALIDATOR_DAMAGES)
def test_a_broken_validator_is_one_sentence(
    damage: Callable[[Path], object], tiny_weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "validator"
    shutil.copytree(tiny_weights / "validator", folder)
    damage(folder)
    with pytest.raises(WeightsError, match="cannot be loaded") as caught:
        Validator.load(folder)
    assert_one_sentence(caught, capfd)


def assert_one_sentence(
    caught: pytest.ExceptionInfo[WeightsError], capfd: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and no chatter beside it."""
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_a_saved_validator_comes_back_the_same(tmp_path: Path) -> None:
    made = tiny.validator(confidence=0.9)
    made.save(tmp_path)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    (first, _) = back = Validator.load(tmp_path).predict(tiles)
    assert [p.code for p in back] == [tiny.ALWAYS.code] * 2
    assert first.confidence == pytest.approx(0.9, abs=1e-3)
    assert sum(first.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert first.in_distribution


def test_contexts_of_another_shape_are_refused(tmp_path: Path) -> None:
    context: TextContext = tiny.contexts(3)
    save_file({"states": context.states, "mask": context.mask}, tmp_path / "contexts.safetensors")
    with pytest.raises(WeightsError, match="contexts of shape"):
        load_contexts(tmp_path / "contexts.safetensors")
