"""Putting finished runs together as a weights folder, and measuring it, with models of toy size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathsynth import data
from pathsynth.attributes import caption, phrases
from pathsynth.data import Split, SplitName
from pathsynth.generator import WORDINGS_FILE, Generator, Sampling, load_wordings
from pathsynth.records import Report
from pathsynth.studio import Studio
from pathsynth.tissues import CODES, TISSUES
from pathsynth.training import RUN_FILE, release
from pathsynth.weights import Weights
from tests import tiny


def run_of(folder: Path, source: Path, part: str, **record: object) -> Path:
    """A finished run that made `part` as it is in `source`."""
    shutil.copytree(source, folder / part)
    (folder / RUN_FILE).write_text(json.dumps({"config": record, "data": "abc", "result": {"step": 3}}))
    return folder


@pytest.fixture
def runs(tmp_path: Path, tiny_weights: Path) -> dict[str, Path]:
    """Finished runs of validator, base and adapter."""
    return {
        "validator": run_of(tmp_path / "v", tiny_weights / "validator", "validator", kind="validator"),
        "base": run_of(tmp_path / "b", tiny_weights / "layout", "layout", kind="base"),
        "adapter": run_of(tmp_path / "l", tiny_weights / "lora" / "default", "lora", kind="lora"),
    }


def arguments(weights: Path, runs: dict[str, Path]) -> list[str]:
    return [
        str(weights),
        "--validator",
        str(runs["validator"]),
        "--base",
        str(runs["base"]),
        "--adapter",
        f"default={runs['adapter']}",
        "--steps",
        "2",
        "--guidance",
        "1.5",
        "--guidance-interval",
        "0.1",
        "0.9",
    ]


def split(name: SplitName, size: int = 28, root: Path | None = None) -> Split:
    return tiny.split(name, 360 if name == "train" else 90)


def test_copied_runs_are_weights_that_say_how_they_were_trained(
    tmp_path: Path, runs: dict[str, Path]
) -> None:
    target = tmp_path / "weights"
    assert release.main([*arguments(target, runs), "--only-copy"]) == 0
    weights = Weights(target)
    assert weights.manifest.components["validator"]["config"] == {"kind": "validator"}
    assert weights.manifest.components["lora/default"]["sampling"] == {
        "steps": 2,
        "guidance": 1.5,
        "guidance_interval": [0.1, 0.9],
        "stochastic": False,
        "texture": {},
        "variety": {},
        "sketch": None,
        "turned": False,
    }
    assert weights.manifest.components["layout"]["result"] == {"step": 3}
    assert not (target / "reports").exists()


def test_a_copied_model_does_not_say_in_which_folder_it_was_trained(
    tmp_path: Path, runs: dict[str, Path]
) -> None:
    config = runs["base"] / "layout" / "unet" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"_name_or_path": "/home/somebody/runs"}))
    target = tmp_path / "weights"
    assert release.main([*arguments(target, runs), "--only-copy"]) == 0
    assert json.loads((target / "layout" / "unet" / "config.json").read_text()) == content
    assert "somebody" not in "".join(path.read_text() for path in target.rglob("*.json"))


def test_a_model_that_is_not_named_stays(tmp_path: Path, runs: dict[str, Path]) -> None:
    target = tmp_path / "weights"
    assert release.main([*arguments(target, runs), "--only-copy"]) == 0
    before = Weights(target).manifest
    other = runs["adapter"] / "lora" / "pytorch_lora_weights.safetensors"
    other.write_bytes(b"another")
    assert release.main([str(target), "--adapter", f"default={runs['adapter']}", "--only-copy"]) == 0
    after = Weights(target).manifest
    changed = {name for name, entry in after.files.items() if before.files[name] != entry}
    assert changed == {"lora/default/pytorch_lora_weights.safetensors", "lora/default/settings.json"}
    assert after.components["validator"] == before.components["validator"]


def test_an_adapter_trained_for_its_own_steps_is_sampled_in_them(
    tmp_path: Path, runs: dict[str, Path]
) -> None:
    record = {"config": {"kind": "lora", "adversarial": {"steps": 4}}, "data": "abc", "result": {"step": 3}}
    (runs["adapter"] / RUN_FILE).write_text(json.dumps(record))
    target = tmp_path / "weights"
    assert release.main([*arguments(target, runs), "--only-copy"]) == 0
    sampling = json.loads((target / "lora" / "default" / "settings.json").read_bytes())
    assert sampling == {
        "steps": 4,
        "guidance": 1.0,
        "guidance_interval": [0.0, 1.0],
        "stochastic": True,
        "texture": {},
        "variety": {},
        "sketch": None,
        "turned": False,
    }


@pytest.mark.parametrize(("clear", "held"), [(False, False), (True, False), (True, True)])
def test_an_adapter_that_starts_from_sketches_comes_with_what_makes_them(
    clear: bool, held: bool, tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = {"steps": 4, "sketch": 7, "sketch_clear": clear, "sketch_held": held}
    config = {"kind": "lora", "adversarial": trained}
    (runs["adapter"] / RUN_FILE).write_text(json.dumps({"config": config, "result": {"step": 3}}))
    target = tmp_path / "weights"
    asked = [*arguments(target, runs), "--only-copy", "--turned", "--sketch", str(runs["base"])]
    assert release.main(asked) == 1
    assert "start from sketches; give --sketch-steps" in capsys.readouterr().err
    assert release.main([*asked, "--sketch-steps", "12", "--sketch-guidance", "1.5"]) == 0
    settings = target / "lora" / "default" / "settings.json"
    sampling = json.loads(settings.read_bytes())
    how = {"steps": 12, "guidance": 1.5, "stochastic": False, "clear": clear, "held": held}
    assert sampling["sketch"] == how
    assert sampling["turned"]
    assert Weights(target).manifest.components["sketch"]["config"] == {"kind": "base"}
    assert Generator.load(Weights(target)).propose(tiny.contexts(1), [1]).shape == (1, 28, 28, 3)


def test_an_adapter_that_was_trained_from_drawn_sketches_says_how_to_draw_them(
    tmp_path: Path, runs: dict[str, Path]
) -> None:
    drawn = {"sketches": "drawer", "sketch_steps": 3, "sketch_stochastic": True}
    config = {"kind": "lora", "adversarial": {"steps": 2, "sketch": 7, **drawn}}
    (runs["adapter"] / RUN_FILE).write_text(json.dumps({"config": config, "result": {"step": 3}}))
    target = tmp_path / "weights"
    assert release.main([*arguments(target, runs), "--only-copy", "--sketch", str(runs["base"])]) == 0
    sampling = json.loads((target / "lora" / "default" / "settings.json").read_bytes())
    how = {"steps": 3, "guidance": 1.0, "stochastic": True, "clear": False, "held": False}
    assert sampling["sketch"] == how


def test_an_adapter_that_starts_from_noise_wants_no_sketches(
    tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"kind": "lora", "adversarial": {"steps": 4}}
    (runs["adapter"] / RUN_FILE).write_text(json.dumps({"config": config, "result": {"step": 3}}))
    asked = [*arguments(tmp_path / "weights", runs), "--only-copy", "--sketch-steps", "12"]
    assert release.main(asked) == 1
    assert "start from noise; leave out --sketch-steps" in capsys.readouterr().err


def test_an_adapter_keeps_the_correction_of_texture_that_it_was_trained_through(
    tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gains = {"ADI": [[[0.9, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.1]]] * 14}
    config = {"kind": "lora", "adversarial": {"steps": 4, "texture": "earlier"}}
    (runs["adapter"] / RUN_FILE).write_text(json.dumps({"config": config, "result": {"step": 3}}))
    target = tmp_path / "weights"
    assert release.main([*arguments(target, runs), "--only-copy"]) == 1
    assert "earlier" in capsys.readouterr().err
    (tmp_path / "earlier").mkdir()
    sampling = Sampling(steps=9, guidance=2.0, texture=gains)
    (tmp_path / "earlier" / "settings.json").write_text(sampling.model_dump_json())
    assert release.main([*arguments(target, runs), "--only-copy"]) == 0
    settings = json.loads((target / "lora" / "default" / "settings.json").read_bytes())
    assert (settings["steps"], settings["texture"]) == (4, gains)
    noted = Weights(target).manifest.components["lora/default"]
    assert noted["texture"] == {"of": ["ADI"]}
    assert noted["sampling"]["texture"] == {}


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [("strength", text, "is no CODE=SHARE") for text in ("STR", "STR=2", "XYZ=0.5", "STR=much", "STR=nan")]
    + [("tiles", text, "is no CODE=N") for text in ("BACK", "BACK=0", "XYZ=9", "BACK=many", "BACK=1.5")],
)
def test_a_share_or_a_number_of_tiles_that_is_none_is_one_sentence(
    tmp_path: Path, option: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        release.main([str(tmp_path), "--texture", "2", f"--texture-{option}", text])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        (option, text, "is no whole number of 1 or more")
        for option in ("--steps", "--sketch-steps", "--per-class", "--texture")
        for text in ("0", "-1", "1.5", "many")
    ]
    + [
        (option, text, "is no number of 0 or more")
        for option in ("--guidance", "--sketch-guidance")
        for text in ("-1", "nan", "inf", "much")
    ]
    + [("--guidance-interval", text, "is no number from 0 to 1") for text in ("1.1", "-0.1", "nan", "late")],
)
def test_a_number_that_is_out_of_range_is_one_sentence(
    tmp_path: Path, option: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = ["0", text] if option == "--guidance-interval" else [text]
    with pytest.raises(SystemExit) as stopped:
        release.main([str(tmp_path / "weights"), option, *values])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()


def test_the_texture_is_fitted_and_noted(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "load_split", split)
    monkeypatch.setattr(release, "load_split", split)
    target = tmp_path / "weights"
    assert release.main([*arguments(target, runs), "--only-copy"]) == 0
    before = Weights(target).manifest
    monkeypatch.setattr("pathsynth.training.texture.SMALLEST_GAIN", 0.0)
    monkeypatch.setattr("pathsynth.training.texture.LARGEST_GAIN", 100.0)
    how = ["--texture-strength", "STR=0", "--texture-variety", "BACK", "--texture-variety", "DEB"]
    how += ["--texture-tiles", "BACK=3"]
    asked = [str(target), "--texture", "2", *how, "--only-copy"]
    assert release.main(asked) == 0
    after = Weights(target).manifest
    noted = after.components["lora/default"]
    settings = json.loads((target / "lora" / "default" / "settings.json").read_bytes())
    assert noted["sampling"] == before.components["lora/default"]["sampling"]
    assert noted["texture"]["of"] == list(settings["texture"]) != []
    assert all(len(matrices) == 14 for matrices in settings["texture"].values())
    assert noted["texture"]["tiles_per_tissue"] == 2
    assert noted["texture"]["tiles"] == {"BACK": 3}
    assert noted["texture"]["strengths"] == {"STR": 0.0}
    assert "STR" not in settings["texture"]
    assert not any(np.array_equal(each, [np.eye(3)] * 14) for each in settings["texture"].values())
    assert noted["result"] == before.components["lora/default"]["result"]
    assert noted["texture"]["varied"] == list(settings["variety"]) == ["BACK", "DEB"]
    assert all(len(each["made"]) == 21 for each in settings["variety"].values())
    assert settings | {"texture": {}, "variety": {}} == noted["sampling"]


def test_an_unfinished_run_is_refused(
    tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (runs["base"] / RUN_FILE).unlink()
    assert release.main([*arguments(tmp_path / "weights", runs), "--only-copy"]) == 1
    assert "holds no finished training run" in capsys.readouterr().err


@pytest.mark.usefixtures("few_samples")
def test_a_release_measures_itself(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "load_split", split)
    monkeypatch.setattr(release, "load_split", split)
    monkeypatch.setattr(release, "SHEET_ATTEMPTS", 1)
    monkeypatch.setattr(release, "SHEET_COLUMNS", 1)
    target = tmp_path / "weights"
    assert release.main([*arguments(target, runs), "--near-copies", "--wordings", "--per-class", "2"]) == 0
    studio = Studio(target, tmp_path / "home")
    assert studio.weights.has("near-copies")
    wordings = load_wordings(target / WORDINGS_FILE)
    train = split("train")
    for tissue in TISSUES:
        real = {caption(words) for words in phrases(train.images[train.labels == tissue.index])}
        assert wordings[tissue.code]
        assert set(wordings[tissue.code]) <= real
    for name in ("validator-val", "validator-test", "generator"):
        assert studio.committed_report(name).model == studio.model
    generator = Report.model_validate_json((target / "reports" / "generator.json").read_bytes())
    assert generator.n == 2 * len(CODES)
    with Image.open(target / release.SHEET_FILE) as sheet:
        assert sheet.width > sheet.height // 3
    assert studio.model in (target / "MODEL_CARD.md").read_text()
