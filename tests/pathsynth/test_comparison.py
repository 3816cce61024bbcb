"""LoRA configurations beside each other, with models of toy size."""

import json
import shutil
from pathlib import Path

import pytest

from pathsynth.data import Split, SplitName
from pathsynth.generator import load_sampling
from pathsynth.modelcard import CARD, read_reports
from pathsynth.training import RUN_FILE, comparison, layout, read_config
from pathsynth.training.layout_config import LoraConfig
from pathsynth.weights import write_manifest
from tests import tiny

CONFIG = """
kind = "lora"
rank = {rank}
alpha = 2
target_modules = ["to_q", "to_v"]
prompt_style = "{style}"

[optim]
steps = 1
batch_size = 2
learning_rate = 0.01

[sampling]
steps = 1
guidance = {guidance}
"""


def split(name: SplitName, size: int = 28, root: Path | None = None) -> Split:
    return tiny.split(name, 36)


@pytest.fixture
def weights(tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights that may be written to, whose adapter says how it was trained."""
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    tiny.validator().save(folder / "judge")
    record = {
        "config": {
            "rank": 4,
            "target_modules": ["to_q"],
            "optim": {"learning_rate": 0.1, "steps": 3, "batch_size": 2},
            "prompt_style": "domain+attributes",
            "adversarial": {"steps": 1},
        },
        "result": {"seconds": 7.4},
        "sampling": {"steps": 9, "guidance": 9.0},
    }
    write_manifest(folder, {"lora/default": record, "judge": {}})
    monkeypatch.setenv("PATHSYNTH_WEIGHTS", str(folder))
    monkeypatch.setattr(layout, "load_split", split)
    return folder


def config(folder: Path, name: str, rank: int = 2, style: str = "domain", guidance: float = 1.0) -> str:
    path = folder / f"{name}.toml"
    path.write_text(CONFIG.format(rank=rank, style=style, guidance=guidance), encoding="utf-8")
    return str(path)


@pytest.mark.usefixtures("few_samples")
def test_each_configuration_is_trained_once_and_told_in_the_card(tmp_path: Path, weights: Path) -> None:
    runs = tmp_path / "runs"
    files = [
        config(tmp_path, "one"),
        config(tmp_path, "one-guided", guidance=2.0),
        config(tmp_path, "label", rank=1, style="label"),
    ]
    asked = [str(runs), *files, "--per-class", "1"]
    assert comparison.main(asked) == 0
    assert sorted(path.name for path in runs.iterdir()) == ["label", "one"]
    reports, _ = read_reports(weights)
    told = {name: each.adapter for name, each in reports.items() if each.adapter is not None}
    assert sorted(told) == ["lora-default", "lora-label", "lora-one", "lora-one-guided"]
    assert told["lora-label"].settings["rank"] == 1
    assert told["lora-label"].bytes < told["lora-one"].bytes == told["lora-one-guided"].bytes
    assert told["lora-one"].settings["guidance"] == "1, times 0 to 1"
    assert told["lora-one-guided"].settings["guidance"] == "2, times 0 to 1"
    assert told["lora-default"].settings["loss"] == "against a rival"
    assert told["lora-default"].settings["training seconds"] == 7
    used = load_sampling(weights / "lora" / "default")  # not what the manifest says of it
    assert told["lora-default"].settings["denoising steps"] == used.steps != 9
    assert all(reports[name].n == 9 and reports[name].macro_f1_judge is not None for name in told)
    assert (weights / comparison.PLOT_FILE).stat().st_size > 5_000
    card = (weights / CARD).read_text(encoding="utf-8")
    assert all(f"| {name}" in card for name in ("one", "one-guided", "label", comparison.SHIPPED))

    before = json.loads((runs / "one" / RUN_FILE).read_text(encoding="utf-8"))
    assert comparison.main(asked) == 0  # nothing is trained again
    assert json.loads((runs / "one" / RUN_FILE).read_text(encoding="utf-8")) == before


@pytest.mark.usefixtures("weights")
def test_a_configuration_without_sampling_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(config(tmp_path, "one"))
    path.write_text(path.read_text(encoding="utf-8").partition("[sampling]")[0], encoding="utf-8")
    assert comparison.main([str(tmp_path / "runs"), str(path)]) == 1
    assert "does not say how to sample" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_ships_changes_one_thing_at_a_time() -> None:
    files = comparison.configurations()
    shipped = {path.stem: read_config(path, LoraConfig).model_dump() for path in files}
    assert list(shipped).index("reference") < list(shipped).index("reference-guidance-1")
    assert len(shipped) >= 8
    reference = flat(shipped.pop("reference"))
    for name, other in shipped.items():
        changed = {key for key, value in flat(other).items() if reference[key] != value}
        expected = {"rank", "alpha"} if "rank-" in name else {key for key in changed if "sampling" in key}
        assert changed == expected or len(changed) == 1, name


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings by their dotted names."""
    result: dict[str, object] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
