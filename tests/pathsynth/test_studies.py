"""The further figures from end to end: studio and command line, with networks that were never trained."""

import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pathsynth import cli, data, probes, realism, robustness, terminal
from pathsynth.attributes import ATTRIBUTES
from pathsynth.data import Split, SplitName
from pathsynth.errors import RequestError, WeightsError
from pathsynth.records import FullReport, Report
from pathsynth.studio import Studio
from pathsynth.tissues import CODES, TISSUES, Tissue
from pathsynth.validator import Validator
from tests.fakes import smooth_tile

Tiles = npt.NDArray[np.uint8]
FEATURES = 16
REAL = {"train": 16, "val": 24, "test": 6}


def split(name: SplitName) -> Split:
    labels = np.repeat(np.arange(9, dtype=np.int64), REAL[name])
    start = 10_000 * list(REAL).index(name)
    return Split(name, np.stack([smooth_tile(start + i) for i in range(len(labels))]), labels)


class Painter:
    """A generator whose tile is that of its seed, darker for tissues of higher index."""

    def __init__(self) -> None:
        self.descriptions: list[str] = []

    def context_of(self, tissue: Tissue, description: str, encoder: object, seed: int) -> int:
        self.descriptions.append(description)
        return tissue.index

    def propose(
        self,
        context: int,
        seeds: Sequence[int],
        on_step: Callable[[], None] | None = None,
        tissue: Tissue | None = None,
    ) -> Tiles:
        return np.stack([smooth_tile(90_000 + seed) // (1 + context // 3) for seed in seeds])


class Untrained(Studio):
    """A studio with untrained networks and a generator that paints."""

    @property
    def model(self) -> str:
        return "abcdef012345"


def untrained(seed: int) -> Validator:
    torch.manual_seed(seed)
    layers = {
        "stem": nn.Conv2d(3, FEATURES, 7, stride=7),
        "relu": nn.ReLU(),
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(FEATURES, 9),
    }
    model = nn.Sequential(OrderedDict(layers))
    return Validator(model, "resnet18", 1.0, torch.zeros(9, FEATURES), torch.eye(FEATURES), 1.0)


class Listing:
    """Weights that say whether there is a judge, and what is new since the weights `before`."""

    def __init__(self, judged: bool, new: Collection[str] = ()) -> None:
        self.judged = judged
        self.new = {*new}
        self.manifest = self

    def has(self, component: str) -> bool:
        return component == "judge" and self.judged

    def measured(self, model: str, components: Collection[str]) -> bool:
        return model == "abcdef012345" or (model == "before" and self.new.isdisjoint(components))


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Untrained:
    """A studio over small splits, with short trainings and few images."""
    monkeypatch.setattr(data, "load_split", split)
    monkeypatch.setattr(probes, "transfer", partial(probes.transfer, steps=2, trainings=2))
    monkeypatch.setattr(probes, "real_or_generated", partial(probes.real_or_generated, steps=2))
    monkeypatch.setattr(probes, "BATCH", 4)
    monkeypatch.setattr(robustness, "CROPS", 1)
    monkeypatch.setattr(robustness, "NOISE_TILES", 8)
    monkeypatch.setattr("pathsynth.evaluate.FIDELITY_PER_CLASS", 6)
    monkeypatch.setattr(realism, "imagenet_space", lambda: None)
    made = Untrained(home=tmp_path / "home")
    for name, value in (
        ("_validator", untrained(0)),
        ("_judge", untrained(1)),
        ("_generator", Painter()),
        ("weights", Listing(judged=True)),
    ):
        made.__dict__[name] = value  # where `cached_property` keeps what it found
    return made


def test_a_full_study_of_the_validator_has_every_further_figure(studio: Untrained) -> None:
    heard: list[str] = []
    report = studio.study_validator("val", lambda done, total, message: heard.append(message))
    for figure in (report.selective, report.reliability, report.stress, report.outside):
        assert figure is not None
        assert (figure.split, figure.n, figure.model) == ("val", 9 * 24, studio.model)
    assert report.stress is not None
    assert report.stress.accuracy["unchanged"] == report.accuracy
    assert report.baselines is not None
    assert len(report.baselines) == 2
    assert FullReport.model_validate_json(report.model_dump_json(exclude_none=True)) == report
    assert {message.split(":")[0] for message in heard} >= {"Baseline", "Out of distribution", "Stress"}


def test_a_short_evaluation_has_only_what_costs_nothing(studio: Untrained) -> None:
    report = studio.evaluate_validator("val")
    assert isinstance(report, FullReport)
    assert report.reliability is not None
    assert report.selective is not None
    assert (report.stress, report.outside, report.baselines) == (None, None, None)


def test_the_judge_is_measured_on_real_tiles_as_the_validator_is(studio: Untrained) -> None:
    report = studio.evaluate_judge("test")
    assert (report.what, report.split, report.n) == ("judge", "test", 54)
    named = studio.__dict__["_judge"].probabilities(split("test").images).argmax(1).numpy()
    assert report.accuracy == pytest.approx(float((named == split("test").labels).mean()))


def test_a_full_study_of_the_generator_has_every_further_figure(studio: Untrained) -> None:
    tiles = studio.first_tiles(12, 500)
    report = studio.study_generator(tiles)
    assert report.macro_f1_judge is not None
    assert report.per_class_judge is not None
    by_judge = [figures.f1 for figures in report.per_class_judge.values()]
    assert np.mean(by_judge) == pytest.approx(report.macro_f1_judge)
    assert (report.n, report.seed, report.model) == (108, 500, studio.model)
    (space,) = report.realism or []
    assert space.space == "judge, penultimate layer (resnet18)"
    assert (space.n, space.split) == (108, "val")
    assert [each.space for each in report.memorisation or []] == [realism.PIXELS, space.space]
    assert report.transfer is not None
    assert (report.transfer.split, report.transfer.n, report.transfer.trained_on) == ("test", 54, 108)
    assert report.transfer.seeds == [500, 501]
    assert report.structure is not None
    assert list(report.structure.by_tissue) == list(CODES)
    assert report.real_or_generated is not None
    assert report.fidelity is not None
    assert report.fidelity.n == 54
    for figure in (space, report.transfer, report.structure, report.real_or_generated, report.fidelity):
        assert (figure.seed, figure.model) == (500, studio.model)
    assert FullReport.model_validate_json(report.model_dump_json(exclude_none=True)) == report


def test_descriptions_are_asked_for_the_way_a_user_asks(studio: Untrained) -> None:
    studio.study_generator(studio.first_tiles(10, 0))
    painter: Any = studio.__dict__["_generator"]
    first, described = painter.descriptions[: 10 * len(TISSUES)], painter.descriptions[10 * len(TISSUES) :]
    assert first == 10 * [tissue.label for tissue in TISSUES]
    assert len(described) == 54
    known = {word.split(" ")[0] for a in ATTRIBUTES for word in a.words}
    assert all(part.split(" ")[0] in known for text in described for part in text.split(", "))


def test_without_a_judge_the_validator_takes_its_place_by_name(studio: Untrained) -> None:
    studio.__dict__["weights"] = Listing(judged=False)
    report = studio.study_generator(studio.first_tiles(10, 0))
    assert report.macro_f1_judge is None
    assert [each.space for each in report.realism or []] == [
        "validator, for want of a judge, penultimate layer (resnet18)"
    ]


def of_before(report: FullReport) -> FullReport:
    """The report as the weights `before` would have measured it, with an accuracy of its own."""
    assert report.transfer is not None
    marked = report.transfer.model_copy(update={"synthetic": 0.123})
    changed = report.model_copy(update={"transfer": marked, "accuracy": 0.456})
    return FullReport.model_validate_json(changed.model_dump_json().replace("abcdef012345", "before"))


@pytest.mark.parametrize(
    ("judged", "new", "seed", "kept"),
    [
        (True, {"validator"}, 0, True),
        (True, {"validator", "judge"}, 0, False),
        (True, {"lora/default"}, 0, False),
        (True, {"validator"}, 1, False),
        (False, {"judge"}, 0, True),
        (False, {"validator"}, 0, False),
    ],
)
def test_only_what_a_change_has_no_part_in_is_kept_of_an_earlier_study(
    studio: Untrained, judged: bool, new: set[str], seed: int, kept: bool
) -> None:
    studio.__dict__["weights"] = Listing(judged)
    first = studio.study_generator(studio.first_tiles(10, 0))
    studio.__dict__["weights"] = Listing(judged, new)
    again = studio.study_generator(studio.first_tiles(10, seed), None, of_before(first))
    expected = "before" if kept else studio.model
    assert again.transfer is not None
    assert (again.transfer.synthetic == 0.123) == kept
    assert again.transfer.model == expected
    assert [each.model for each in again.memorisation or []] == [expected, expected]
    assert again.model == studio.model
    assert again.accuracy != 0.456
    assert (again.per_class_judge is None) == (not judged)


def test_tiles_of_weights_that_make_the_same_ones_are_taken(studio: Untrained, tmp_path: Path) -> None:
    path = tmp_path / "tiles.npz"
    made = studio.first_tiles(3, 7)
    replace(made, model="before").save(path)
    studio.__dict__["weights"] = Listing(True, {"validator", "judge"})
    assert studio.kept_tiles(path, 3, 7).model == studio.model
    studio.__dict__["weights"] = Listing(True, {"layout"})
    with pytest.raises(RequestError, match="tiles of weights before"):
        studio.kept_tiles(path, 3, 7)


def test_asking_for_a_judge_that_is_not_there_fails_before_the_work(studio: Untrained) -> None:
    studio.__dict__["weights"] = Listing(judged=False)
    del studio.__dict__["_judge"]
    with pytest.raises(WeightsError, match="no judge"):
        studio.evaluate_tiles(studio.first_tiles(10, 0), judge=True)


def test_a_study_of_kept_tiles_says_the_same_as_an_evaluation(studio: Untrained) -> None:
    kept = studio.evaluate_tiles(studio.first_tiles(3, 7), judge=True)
    made = studio.evaluate_generator(3, 7, judge=True)
    assert kept.model_copy(update={"seconds": 0.0}) == made.model_copy(update={"seconds": 0.0})


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_command_keeps_tiles_writes_pictures_and_answers_the_full_report(
    studio: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "open_studio", lambda: studio)
    tiles, plots = tmp_path / "kept" / "tiles.npz", tmp_path / "plots"
    command = ["evaluate", "generator", "--per-class", "10", "--tiles", str(tiles), "--json"]
    code, out, _ = run([*command, "--full", "--plots", str(plots)], capsys)
    assert code == 0
    full = FullReport.model_validate(json.loads(out))
    assert full.realism is not None
    assert {path.name for path in plots.iterdir()} == {
        "confusion-generator.png",
        "spectra-generator.png",
        *(f"sheet-{code}.png" for code in CODES),
    }
    assert tiles.is_file()
    del studio.__dict__["_generator"]  # from here on there are only the kept tiles
    code, out, _ = run(command, capsys)
    assert code == 0
    assert Report.model_validate(json.loads(out)).confusion == full.confusion
    earlier = tmp_path / "earlier.json"
    earlier.write_text(full.model_dump_json(), encoding="utf-8")
    with monkeypatch.context() as nothing_measured:
        nothing_measured.setattr(probes, "transfer", None)
        code, out, _ = run([*command, "--full", "--earlier", str(earlier)], capsys)
    assert code == 0
    assert FullReport.model_validate(json.loads(out)).transfer == full.transfer
    for wrong in (["--earlier", str(earlier)], ["--full", "--earlier", str(tiles)]):
        code, out, _ = run([*command, *wrong], capsys)
        assert code == 1
        assert "--earlier" in json.loads(out)["error"]
    code, out, _ = run([*command, "--seed", "1"], capsys)
    assert code == 1
    assert "delete it or name another file" in json.loads(out)["error"]


def test_a_person_sees_the_further_figures(
    studio: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "open_studio", lambda: studio)
    code, out, _ = run(
        ["evaluate", "validator", "--split", "test", "--full", "--plots", str(tmp_path)], capsys
    )
    assert code == 0
    for line in ("baseline, mean RGB", "AUROC, photographs", "accuracy, JPEG quality 20"):
        assert line in out
    assert (tmp_path / "reliability-validator-test.png").is_file()


def test_plots_of_a_loop_show_its_attempts(
    studio: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.fakes import report

    monkeypatch.setattr(terminal, "open_studio", lambda: studio)
    accepted = report("generator").model_copy(update={"what": "loop", "attempts": dict.fromkeys(CODES, 14)})
    monkeypatch.setattr(studio, "evaluate_loop", lambda per_class, seed, progress: accepted)
    code, _, _ = run(["evaluate", "loop", "--plots", str(tmp_path), "--json"], capsys)
    assert code == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"confusion-loop.png", "attempts-loop.png"}
