"""Averages of runs: what the mean is, what is refused."""

import json
from pathlib import Path

import pytest
import torch

from pathsynth.errors import TrainingError
from pathsynth.training import average, read_config
from pathsynth.training.average import average_runs
from pathsynth.training.engine import averaged_weights, run
from pathsynth.training.release import read_run
from pathsynth.training.validator import ValidatorConfig, ValidatorTask
from pathsynth.validator import Validator, symmetric_logits
from tests import tiny

CONFIG = """
kind = "validator"
architecture = "resnet18"
stain_strength = 0.1

[optim]
steps = 2
batch_size = 8
learning_rate = 0.01
warmup_steps = 1
seed = {seed}
precision = "float32"
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Two runs of two steps each, with their configurations."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for seed in (1, 2):
        config, out = folder / f"{seed}.toml", folder / str(seed)
        config.write_text(CONFIG.format(seed=seed))
        settings = read_config(config, ValidatorConfig)
        task = ValidatorTask(settings, tiny.split("train", 36), tiny.split("val", 18))
        out.mkdir()
        run(task, settings.optim, out)
        made.append((config, out))
    return made


def test_the_mean_is_of_the_averaged_weights_and_ships_as_a_run(
    runs: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    val = tiny.split("val", 18)
    out = tmp_path / "mean"
    figures = average_runs(out, runs, tiny.split("train", 36), val)
    mean = Validator.load(out / "validator")
    states = [averaged_weights(folder / "checkpoint.pt")[0] for _, folder in runs]
    for name in ("conv1.weight", "layer2.0.bn1.running_var"):
        expected = (states[0][name] + states[1][name]) / 2
        assert not torch.equal(states[0][name], states[1][name])
        assert torch.allclose(mean.model.state_dict()[name], expected, rtol=1e-3, atol=1e-4)
    assert symmetric_logits(mean.model, val.images).isfinite().all()
    record = read_run(out)
    assert [each["config"]["optim"]["seed"] for each in record["averaged"]] == [1, 2]
    assert [each["result"]["step"] for each in record["averaged"]] == [2, 2]
    assert record["result"]["val_accuracy"] == figures["val_accuracy"]
    assert json.loads((out / "validator" / "config.json").read_text())["architecture"] == "resnet18"


def test_runs_that_have_no_mean_are_refused(runs: list[tuple[Path, Path]], tmp_path: Path) -> None:
    config, folder = runs[0]
    other = tmp_path / "judge.toml"
    other.write_text(config.read_text().replace("resnet18", "regnet_y_400mf"))
    with pytest.raises(TrainingError, match="same network"):
        average_runs(tmp_path / "out", [(config, folder), (other, folder)])
    with pytest.raises(TrainingError, match="not of a regnet_y_400mf"):
        average_runs(tmp_path / "out", [(other, folder)], tiny.split("train", 9), tiny.split("val", 9))
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        average_runs(tmp_path / "out", [(config, tmp_path)])
    (tmp_path / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        average_runs(tmp_path / "out", [(config, tmp_path)])


def test_a_wrong_argument_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        average.main([str(tmp_path), "configuration"])
    assert "configuration is not CONFIG=RUN" in capsys.readouterr().err
