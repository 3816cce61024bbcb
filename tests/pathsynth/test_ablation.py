"""Choices of the base beside each other, with models of toy size."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pathsynth.data import Split, SplitName
from pathsynth.modelcard import CARD, read_reports
from pathsynth.training import RUN_FILE, ablation, layout, read_config
from pathsynth.training.layout_config import BaseConfig
from pathsynth.weights import write_manifest
from tests import tiny

CONFIG = """
kind = "base"

[optim]
steps = 1
batch_size = {batch}
learning_rate = 0.01

[unet]
"""


def split(name: SplitName, size: int = 28, root: Path | None = None) -> Split:
    return tiny.split(name, 90)


@pytest.fixture
def weights(tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights that may be written to."""
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    tiny.validator().save(folder / "judge")
    write_manifest(folder, {"judge": {}})
    monkeypatch.setenv("PATHSYNTH_WEIGHTS", str(folder))
    monkeypatch.setattr(layout, "load_split", split)
    monkeypatch.setattr(ablation, "load_split", split)
    monkeypatch.setattr(ablation, "imagenet_space", lambda: None)
    return folder


def config(folder: Path, name: str, batch: int, fold: int = 1) -> str:
    path = folder / f"{name}.toml"
    network = "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in tiny.unet_config(fold).items() if value is not None
    )
    path.write_text(CONFIG.format(batch=batch) + network, encoding="utf-8")
    return str(path)


def test_each_choice_is_trained_once_and_becomes_a_row_of_the_card(tmp_path: Path, weights: Path) -> None:
    runs = tmp_path / "runs"
    files = [config(tmp_path, "one", 2), config(tmp_path, "larger", 4), config(tmp_path, "folded", 2, fold=2)]
    assert ablation.main([str(runs), *files, "--per-class", "2", "--train-only"]) == 0
    assert sorted(path.name for path in runs.iterdir()) == ["folded", "larger", "one"]
    assert ablation.REPORT not in read_reports(weights)[1]
    before = json.loads((runs / "one" / RUN_FILE).read_text(encoding="utf-8"))

    assert ablation.main([str(runs), *files, "--per-class", "2"]) == 0
    assert json.loads((runs / "one" / RUN_FILE).read_text(encoding="utf-8")) == before
    table = read_reports(weights)[1][ablation.REPORT]
    told = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(told) == ["one", "larger", "folded"]
    assert [each["training tiles"] for each in told.values()] == [2, 4, 2]
    losses: list[Any] = [each["loss on val"] for each in told.values()]
    assert len(set(losses)) == 3
    assert all(0.1 < loss < 10 for loss in losses)
    assert all(0 <= float(str(each["coverage (judge)"])) <= 1 for each in told.values())
    assert "| folded " in (weights / CARD).read_text(encoding="utf-8")


def test_a_choice_measured_later_joins_the_rows_there_are(tmp_path: Path, weights: Path) -> None:
    def measured(*files: str, per_class: str = "2") -> dict[Any, list[Any]]:
        assert ablation.main([str(tmp_path / "runs"), *files, "--per-class", per_class]) == 0
        return {row[0]: row for row in read_reports(weights)[1][ablation.REPORT].rows}

    first, reference = config(tmp_path, "first", 2), config(tmp_path, "reference", 4)
    before = measured(first)
    both = measured(reference)
    assert list(both) == ["reference", "first"]  # where it is in the list of those that ship, others last
    assert both["first"] == before["first"]
    shutil.rmtree(tmp_path / "runs" / "first")
    config(tmp_path, "first", 6)
    again = measured(first)
    assert again["first"] != before["first"]
    assert again["reference"] == both["reference"]
    assert list(measured(first, per_class="3")) == ["first"]  # figures of other tiles do not stand beside it


def test_a_remark_ends_the_note_as_long_as_a_row_stands_that_it_may_be_about(
    tmp_path: Path, weights: Path
) -> None:
    def note(name: str, *options: str) -> str:
        path = config(tmp_path, name, 2)
        assert ablation.main([str(tmp_path / "runs"), path, "--per-class", "2", *options]) == 0
        return read_reports(weights)[1][ablation.REPORT].note

    plain = note("first")
    remarked = f"{plain} Half as fast."
    assert note("second", "--remark", "Half as fast.") == remarked
    assert note("first", "--remark", "Half as fast.") == remarked
    assert note("first") == remarked
    assert note("first", "--per-class", "3") == plain.replace(" 18 tiles", " 27 tiles")


@pytest.mark.usefixtures("weights")
def test_a_file_that_does_not_fit_is_said_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('kind = "base"\nsteps = 1\n', encoding="utf-8")
    assert ablation.main([str(tmp_path / "runs"), config(tmp_path, "one", 2), str(wrong)]) == 1
    assert "wrong.toml" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_ships_changes_one_thing_of_the_reference() -> None:
    first, *others = ablation.configurations()
    assert first.stem == "reference"
    assert len(others) >= 6
    reference = read_config(first, BaseConfig).model_dump()
    for path in others:
        other = read_config(path, BaseConfig).model_dump()
        changed = {key for key, value in other.items() if reference[key] != value}
        assert len(changed) == 1 or changed == {"unet", "transformer"}, path.stem
