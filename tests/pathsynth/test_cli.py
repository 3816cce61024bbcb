"""The `pathsynth` command: its answers, its exit codes, its sentences."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pathsynth import cli, data, doctor, terminal, training
from pathsynth.errors import DataError, RequestError, StoreError, TrainingError, WeightsError
from pathsynth.images import encode_png, read_image, read_image_and_xmp, upscale
from pathsynth.mark import marked
from pathsynth.progress import CheckCancelled, Progress
from pathsynth.provenance import claimed_tiles
from pathsynth.records import GenerationResult, Report
from pathsynth.tissues import CODES
from tests.fakes import FakeStudio, report, smooth_tile

ROOT_OF_SOURCES = Path(__file__).parents[2]


class CommandLineStudio(FakeStudio):
    """The fake studio with what only the command line asks of it."""

    def evaluate_generator(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        judge: bool = False,
        check_cancelled: CheckCancelled | None = None,
        time_budget: float | None = None,
    ) -> Report:
        made = super().evaluate_generator(per_class, seed, progress, judge, check_cancelled, time_budget)
        return made.model_copy(update={"macro_f1_judge": 0.5 if judge else None})

    def evaluate_loop(
        self,
        per_class: int,
        seed: int,
        progress: Progress | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> Report:
        self.asked.append(("loop", per_class, seed))
        made = report("generator", n=9 * per_class, seed=seed)
        return made.model_copy(update={"what": "loop", "mean_attempts": 1.5})


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Runs commands in this process against a fake studio."""

    studio: CommandLineStudio
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Ran:
        code = cli.main(list(arguments))
        captured = self.capture.readouterr()
        return Ran(code, captured.out, captured.err)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("PATHSYNTH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    studio = CommandLineStudio(home=tmp_path / "home")
    monkeypatch.setattr(terminal, "open_studio", lambda: studio)
    return Shell(studio, capsys)


def saved_tile(folder: Path, name: str = "tile.png", seed: int = 7) -> Path:
    path = folder / name
    path.write_bytes(encode_png(smooth_tile(seed)))
    return path


def sentence(ran: Ran) -> str:
    """The one sentence of a failure, without traceback."""
    assert "Traceback" not in ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("pathsynth: ")]
    assert len(lines) == 1, ran.err
    return lines[0].removeprefix("pathsynth: ")


def test_generate_prints_the_result_as_one_json_value(shell: Shell) -> None:
    ran = shell(
        "generate", "crowded glands", "--tissue", "TUM", "-n", "2", "--seed", "5", "--size", "28", "--json"
    )
    assert ran.code == 0
    answer = ran.json
    files = answer.pop("files")
    result = GenerationResult.model_validate(answer)
    assert [tile.seed for tile in result.tiles] == [5, 6]
    assert [np.array_equal(read_image(Path(file)), smooth_tile(5 + i)) for i, file in enumerate(files)] == [
        True
    ] * 2
    request = shell.studio.requests[0]
    assert (request.description, request.tissue, request.count, request.seed) == (
        "crowded glands",
        "TUM",
        2,
        5,
    )
    assert (request.size, request.min_confidence, request.max_attempts) == (28, 0.9, 30)


def test_every_option_of_generate_reaches_the_library(shell: Shell) -> None:
    shell(
        "generate",
        "fat",
        "--size",
        "224",
        "--min-confidence",
        "0.5",
        "--max-attempts",
        "7",
        "--tissue",
        "ADI",
    )
    request = shell.studio.requests[0]
    assert (request.size, request.min_confidence, request.max_attempts, request.tissue) == (
        224,
        0.5,
        7,
        "ADI",
    )


def test_generate_tells_a_person_what_was_made_where_and_what_it_is_not(shell: Shell) -> None:
    ran = shell("generate", "glands")
    assert ran.code == 0
    assert "1 tile of colorectal adenocarcinoma epithelium verified" in ran.out
    assert "not for diagnosis" in ran.out
    assert shell.studio.store.ids()[0][:6] in ran.out


def test_out_receives_copies_named_after_tissue_seed_and_id(shell: Shell, tmp_path: Path) -> None:
    ran = shell("generate", "glands", "-n", "2", "--out", str(tmp_path / "a" / "b"), "--json")
    made = sorted((tmp_path / "a" / "b").iterdir())
    assert [str(path) for path in made] == sorted(ran.json["files"])
    assert {path.name for path in made} == {
        f"{tile['tissue']}-{tile['seed']}-{tile['image_id']}.png" for tile in ran.json["tiles"]
    }
    assert all(read_image(path).shape == (28, 28, 3) for path in made)
    for path in made:  # too small for the mark: what was verified, with its provenance
        assert path.read_bytes() == shell.studio.store.get(path.stem.split("-")[-1]).path.read_bytes()
        assert len(claimed_tiles(read_image_and_xmp(path)[1])) == 1


def test_large_tiles_get_the_visible_mark_in_out_but_not_in_the_store(shell: Shell, tmp_path: Path) -> None:
    shell.studio.tile = lambda seed: smooth_tile(seed, 512)
    shell("generate", "glands", "--out", str(tmp_path / "out"))
    (copy,) = (tmp_path / "out").iterdir()
    (image_id,) = shell.studio.store.ids()
    assert np.array_equal(shell.studio.store.get(image_id).pixels(), smooth_tile(0, 512))
    assert np.array_equal(read_image(copy), marked(smooth_tile(0, 512)))
    assert [claim.image_id for claim in claimed_tiles(read_image_and_xmp(copy)[1])] == [image_id]
    (answer,) = shell("classify", str(copy), "--json").json
    assert (answer["image_id"], answer["synthetic_origin"]["how"]) == (image_id, "embedded")


def test_fewer_verified_tiles_than_asked_is_a_failure_that_keeps_the_tiles(shell: Shell) -> None:
    shell.studio.is_verified = lambda attempt: attempt == 2
    ran = shell("generate", "glands", "-n", "3", "--max-attempts", "4", "--json")
    assert ran.code == 1
    assert ran.json["verified"] is False
    assert len(ran.json["tiles"]) == len(ran.json["files"]) == 1
    assert len(ran.json["rejected"]) == 3


def test_no_tile_at_all_is_a_failure_that_says_so(shell: Shell) -> None:
    shell.studio.is_verified = lambda attempt: False
    ran = shell("generate", "glands", "--max-attempts", "2")
    assert ran.code == 1
    assert "No tile of colorectal adenocarcinoma epithelium" in ran.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--count", "0"],
        ["--count", "1000"],
        ["-n", "-1"],
        ["--count", "many"],
        ["--seed", "-1"],
        ["--seed", str(2**32)],
        ["--seed", "9" * 40],
        ["--size", "64"],
        ["--min-confidence", "1.5"],
        ["--min-confidence", "-0.1"],
        ["--max-attempts", "0"],
        ["--unknown"],
        ["a second description"],
    ],
    ids=" ".join,
)
def test_what_is_out_of_range_is_wrong_usage(shell: Shell, arguments: list[str]) -> None:
    ran = shell("generate", "glands", *arguments)
    assert ran.code == 2
    assert sentence(ran)
    assert ran.out == ""
    assert shell.studio.requests == []


@pytest.mark.parametrize(
    "description", ["", "   ", "x" * 10_000], ids=["empty", "blank", "10,000 characters"]
)
def test_an_impossible_description_is_refused_in_one_short_sentence(shell: Shell, description: str) -> None:
    ran = shell("generate", description, "--tissue", "TUM")
    assert ran.code == 1
    assert len(sentence(ran)) < 300
    assert shell.studio.requests == []


def test_not_a_number_is_no_confidence(shell: Shell) -> None:
    assert shell("generate", "glands", "--min-confidence", "nan").code in (1, 2)
    assert shell.studio.requests == []


def test_an_unknown_tissue_is_answered_with_the_known_ones(shell: Shell) -> None:
    ran = shell("generate", "glands", "--tissue", "XYZ")
    assert ran.code == 1
    assert all(code in sentence(ran) for code in CODES)


@pytest.mark.parametrize("error", [RequestError, WeightsError, StoreError])
def test_an_error_of_the_library_is_one_sentence_on_stderr_and_json_on_stdout(
    shell: Shell, error: type[Exception]
) -> None:
    shell.studio.error = error("Something was wrong; do something else.")
    ran = shell("generate", "glands", "--json")
    assert ran.code == 1
    assert sentence(ran) == "Something was wrong; do something else."
    assert ran.json == {"error": "Something was wrong; do something else."}
    assert shell("generate", "glands").out == ""


def test_a_home_that_cannot_be_written_is_said_in_one_sentence(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(terminal, "open_studio", lambda: CommandLineStudio(home=tmp_path / "file" / "home"))
    ran = shell("generate", "glands")
    assert ran.code == 1
    assert "PATHSYNTH_HOME" in sentence(ran)


def test_an_output_folder_that_cannot_be_made_is_found_out_before_any_work(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    ran = shell("generate", "glands", "--out", str(tmp_path / "file" / "out"))
    assert ran.code == 1
    assert "cannot be made" in sentence(ran)
    assert shell.studio.requests == []


def test_ctrl_c_while_generating_exits_with_130_and_no_traceback(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> GenerationResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(shell.studio, "generate", interrupted)
    ran = shell("generate", "glands", "--json")
    assert ran.code == 130
    assert sentence(ran) == "Interrupted."
    assert ran.json == {"error": "Interrupted."}


def run_python(code: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT_OF_SOURCES,
        env=os.environ | {"PATHSYNTH_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_real_ctrl_c_in_the_middle_keeps_what_was_stored(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from pathsynth import cli, terminal
        from tests.fakes import FakeStudio
        studio = FakeStudio(home=Path(sys.argv[1]))
        studio.pauses_before_attempt = 1
        studio.paused.set = lambda: print("paused", flush=True)
        terminal.open_studio = lambda: studio
        sys.exit(cli.main(["generate", "glands", "-n", "2"]))
    """
    with run_python(code, tmp_path, str(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "paused\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert "Interrupted." in errors
    assert "Traceback" not in errors
    studio = FakeStudio(home=tmp_path)
    assert [
        np.array_equal(studio.store.get(each).pixels(), smooth_tile(0)) for each in studio.store.ids()
    ] == [True]


def test_a_reader_that_leaves_early_causes_no_traceback(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from pathsynth import cli, terminal
        from tests.fakes import FakeStudio
        terminal.open_studio = lambda: FakeStudio(home=Path(sys.argv[1]))
        sys.stdin.readline()
        sys.exit(cli.main(["generate", "glands", "-n", "40", "--max-attempts", "60", "--json"]))
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        cwd=ROOT_OF_SOURCES,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        errors = process.stderr.read()
        process.wait(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_the_command_line_starts_without_torch(tmp_path: Path) -> None:
    code = "import sys; from pathsynth import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    with run_python(code, tmp_path) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "generate" in output


def test_classify_names_the_tissue_of_every_image(shell: Shell, tmp_path: Path) -> None:
    paths = [saved_tile(tmp_path, f"{name}.png") for name in "ab"]
    ran = shell("classify", *map(str, paths), "--json")
    assert ran.code == 0
    assert [(each["image"], each["tissue"]) for each in ran.json] == [("a.png", "TUM"), ("b.png", "TUM")]
    assert set(ran.json[0]["probabilities"]) == set(CODES)


def test_classify_says_when_an_image_is_one_of_ours(shell: Shell) -> None:
    shell("generate", "glands")
    (image_id,) = shell.studio.store.ids()
    ran = shell("classify", str(shell.studio.store.get(image_id).path))
    assert "carries PathSynth's provenance record" in ran.out
    assert image_id in ran.out
    assert "Not for diagnosis" in ran.out


def test_classify_recognises_a_tile_of_ours_whose_metadata_is_gone(shell: Shell, tmp_path: Path) -> None:
    shell("generate", "glands")
    (image_id,) = shell.studio.store.ids()
    photograph = tmp_path / "slide.jpg"
    shown = marked(upscale(shell.studio.store.get(image_id).pixels(), 224))
    Image.fromarray(shown).save(photograph, quality=80)
    ((answer,), text) = (
        shell("classify", str(photograph), "--json").json,
        shell("classify", str(photograph)).out,
    )
    assert answer["image_id"] == image_id
    assert answer["synthetic_origin"]["how"] == "pixels"
    assert answer["synthetic_origin"]["synthetic"] is True
    assert f"the stored synthetic image {image_id}" in text


def test_an_image_that_cannot_be_read_does_not_keep_the_others_from_it(shell: Shell, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(encode_png(smooth_tile(1))[:300])
    paths = [tmp_path / "absent.png", broken, tmp_path, saved_tile(tmp_path)]
    ran = shell("classify", *map(str, paths), "--json")
    assert ran.code == 1
    assert ["error" in each for each in ran.json] == [True, True, True, False]
    assert ran.err.count("pathsynth: ") == 3
    assert "Traceback" not in ran.err


def test_classify_without_an_image_is_wrong_usage(shell: Shell) -> None:
    assert shell("classify").code == 2


def test_explain_writes_an_overlay_for_every_image(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathsynth.validator import build_classifier

    class Untrained:
        model = build_classifier("resnet18").eval()

    monkeypatch.setattr(cli, "_validator", Untrained)
    (tmp_path / "more").mkdir()
    paths = [saved_tile(tmp_path), saved_tile(tmp_path / "more", seed=8)]
    ran = shell("classify", *map(str, paths), "--explain", str(tmp_path / "why"), "--json")
    assert ran.code == 0
    overlays = [Path(each["explanation"]) for each in ran.json]
    assert [path.name for path in overlays] == ["001-tile-TUM.png", "002-tile-TUM.png"]
    assert [read_image(path).shape for path in overlays] == [(224, 224, 3)] * 2


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluate_validator_answers_the_report_of_the_split(shell: Shell, split: str) -> None:
    ran = shell("evaluate", "validator", "--split", split, "--json")
    assert ran.code == 0
    assert Report.model_validate(ran.json).split == split
    assert shell.studio.asked == [("validator", split)]


def test_the_judge_is_measured_on_request_and_without_what_is_of_the_validator_alone(shell: Shell) -> None:
    ran = shell("evaluate", "validator", "--split", "test", "--judge", "--json")
    assert (ran.code, ran.json["what"], ran.json["split"]) == (0, "judge", "test")
    assert shell.studio.asked == [("judge", "test")]
    assert shell("evaluate", "validator", "--judge", "--full").code == 2


def test_the_training_split_is_not_for_measuring(shell: Shell) -> None:
    assert shell("evaluate", "validator", "--split", "train").code == 2


def test_missing_data_is_one_sentence(shell: Shell) -> None:
    shell.studio.data_error = DataError("PathMNIST was not found; fetch it.")
    ran = shell("evaluate", "validator", "--json")
    assert ran.code == 1
    assert ran.json == {"error": "PathMNIST was not found; fetch it."}


@pytest.mark.parametrize(("extra", "judged"), [([], None), (["--judge"], 0.5)])
def test_evaluate_generator_passes_count_seed_and_judge_on(
    shell: Shell, extra: Sequence[str], judged: float | None
) -> None:
    ran = shell("evaluate", "generator", "--per-class", "3", "--seed", "9", *extra, "--json")
    assert ran.code == 0
    assert (ran.json["n"], ran.json["macro_f1_judge"]) == (27, judged)
    assert shell.studio.asked == [("generator", 3, 9)]


def test_evaluate_loop_passes_count_and_seed_on(shell: Shell) -> None:
    ran = shell("evaluate", "loop", "--per-class", "4", "--seed", "2", "--json")
    assert (ran.code, ran.json["what"]) == (0, "loop")
    assert shell.studio.asked == [("loop", 4, 2)]


@pytest.mark.parametrize("what", [["validator"], ["generator", "--judge"], ["loop"]])
def test_a_report_for_a_person_shows_every_tissue_the_confusion_and_the_sample_size(
    shell: Shell, what: list[str]
) -> None:
    ran = shell("evaluate", *what)
    assert ran.code == 0
    assert all(ran.out.count(code) >= 3 for code in CODES)
    assert "accuracy: 1.0000" in ran.out
    assert "n = " in ran.out
    assert "95 % interval of macro_f1: 0.9600 to 1.0000; measured" in ran.out


def started_with(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None
) -> list[tuple[Any, ...]]:
    """Put a trainer in place that notes its arguments."""
    calls: list[tuple[Any, ...]] = []

    def start(
        kind: str, config: Path, out: Path, resume: bool, minutes: float | None, show: Any
    ) -> dict[str, Any]:
        calls.append((kind, config, out, resume, minutes))
        show(1, 10, "step 1")
        if error is not None:
            raise error
        return {"steps": 10, "loss": 0.5, "seconds": float("nan")}

    monkeypatch.setattr(training, "start", start, raising=False)
    return calls


def test_train_hands_its_arguments_on_and_prints_the_summary(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "validator.toml"
    config.touch()
    calls = started_with(monkeypatch)
    arguments = ["--config", str(config), "--out", str(tmp_path / "run"), "--resume", "--max-minutes", "2.5"]
    ran = shell("train", "validator", *arguments, "--json")
    assert (ran.code, ran.json) == (0, {"steps": 10, "loss": 0.5, "seconds": None})
    assert calls == [("validator", config, tmp_path / "run", True, 2.5)]
    assert (tmp_path / "run").is_dir()


def test_train_writes_into_the_home_by_default(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "lora.toml"
    config.touch()
    calls = started_with(monkeypatch)
    assert shell("train", "lora", "--config", str(config)).code == 0
    assert calls == [("lora", config, tmp_path / "home" / "runs" / "lora", False, None)]


def test_ctrl_c_while_training_says_how_to_go_on(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "base.toml"
    config.touch()
    started_with(monkeypatch, KeyboardInterrupt())
    ran = shell("train", "base", "--config", str(config))
    assert ran.code == 130
    assert "--resume" in ran.err
    assert "Traceback" not in ran.err


def test_a_training_error_is_one_sentence(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "base.toml"
    config.touch()
    started_with(monkeypatch, TrainingError("The configuration has no steps; add them."))
    assert (
        sentence(shell("train", "base", "--config", str(config)))
        == "The configuration has no steps; add them."
    )


def test_training_needs_a_configuration_that_exists_and_a_known_model(shell: Shell, tmp_path: Path) -> None:
    assert shell("train", "validator").code == 2
    assert shell("train", "everything", "--config", "x").code == 2
    ran = shell("train", "validator", "--config", str(tmp_path / "absent.toml"))
    assert ran.code == 1
    assert "no configuration file" in sentence(ran)


def test_data_fetch_asks_for_size_and_root(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "pathmnist_64.npz"
    archive.write_bytes(b"12345")
    asked: list[tuple[int, Path | None]] = []

    def fetch(size: int, root: Path | None, progress: data.Progress) -> Path:
        asked.append((size, root))
        progress(1 << 20, 2 << 20)
        return archive

    monkeypatch.setattr(data, "fetch", fetch)
    ran = shell("data", "fetch", "--size", "64", "--root", str(tmp_path), "--json")
    assert (ran.code, ran.json) == (0, {"path": str(archive), "size": 64, "bytes": 5})
    assert asked == [(64, tmp_path)]
    assert shell("data", "fetch", "--size", "32").code == 2


def diagnosis(ok: bool) -> doctor.Diagnosis:
    return doctor.Diagnosis(
        ok=ok,
        pathsynth="0",
        python="3.11",
        platform="here",
        processors=2,
        packages={"torch": "2", "mcp": None},
        model=None,
        findings=[doctor.Finding(name="weights", ok=ok, required=True, detail="a detail")],
        matmul_gflops={"float32": 170.0},
        seconds_per_layout_tile=0.25,
    )


@pytest.mark.parametrize("ok", [True, False])
def test_doctor_fails_when_something_required_is_wrong(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, ok: bool
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda on_step: diagnosis(ok))
    ran = shell("doctor", "--json")
    assert ran.code == (0 if ok else 1)
    assert doctor.Diagnosis.model_validate(ran.json) == diagnosis(ok)
    shown = shell("doctor").out
    assert ("WRONG" in shown) is not ok
    assert "a detail" in shown
    assert "170 GFLOP/s" in shown
    assert "mcp missing" in shown


@pytest.mark.parametrize("arguments", [[], ["evaluate"], ["data"], ["draw"], ["evaluate", "everything"]])
def test_an_incomplete_or_unknown_command_is_wrong_usage(shell: Shell, arguments: list[str]) -> None:
    ran = shell(*arguments)
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_the_version_is_printed(shell: Shell) -> None:
    ran = shell("--version")
    assert ran.code == 0
    assert ran.out.startswith("pathsynth ")


COMMANDS = (
    "generate, variations, classify, evaluate validator, evaluate generator, evaluate loop, evaluate detail, "
    "train, data fetch, doctor"
)


@pytest.mark.parametrize("command", COMMANDS.split(", "))
def test_every_command_explains_itself_and_takes_json(shell: Shell, command: str) -> None:
    ran = shell(*command.split(), "--help")
    assert ran.code == 0
    assert "--json" in ran.out
