"""The demo, with a server in this process and a studio without models."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from mcp import Client, StdioServerParameters

from pathsynth.images import read_image
from pathsynth.tissues import CODES
from server import demo
from server.app import build_server
from tests.fakes import FakeStudio


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, studio: FakeStudio) -> None:
    """Lets the demo talk to a server in this process in place of a subprocess."""

    async def run(
        seed: int, on_status: Callable[[str], None]
    ) -> tuple[list[demo.Row], list[npt.NDArray[np.uint8]]]:
        async with Client(build_server(studio)) as client:
            return await demo.ask_for_every_tissue(client, seed, on_status)

    monkeypatch.setattr(demo, "run", run)


@pytest.mark.usefixtures("in_process")
def test_nine_verified_tiles_give_a_table_a_contact_sheet_and_exit_code_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"

    assert demo.main(["--out", str(sheet)]) == 0

    table = capsys.readouterr().out
    assert [code for code in CODES if code not in table] == []
    assert "9 of 9 verified" in table
    height, width, _ = read_image(sheet).shape
    assert width >= 3 * 224
    assert height >= 3 * 224


@pytest.mark.usefixtures("in_process")
def test_json_is_all_that_goes_to_stdout_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--json", "--out", str(tmp_path / "sheet.png")]) == 0

    answer = json.loads(capsys.readouterr().out)
    assert (answer["verified"], answer["synthetic"]) == (True, True)
    assert [(row["tissue"], row["predicted"], row["verified"]) for row in answer["rows"]] == [
        (code, code, True) for code in CODES
    ]


@pytest.mark.usefixtures("in_process")
def test_a_request_that_fell_short_goes_on_after_the_others(
    tmp_path: Path, studio: FakeStudio, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.is_verified = lambda attempt: studio.requests[-1].tissue != "MUC" or attempt == 70

    assert demo.main(["--json", "--out", str(tmp_path / "sheet.png")]) == 0

    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["tissue"] for row in rows] == list(CODES)
    assert {row["tissue"]: row["attempts"] for row in rows if row["attempts"] > 1} == {"MUC": 70}
    assert [request.tissue for request in studio.requests] == [*CODES, "MUC", "MUC"]


@pytest.mark.usefixtures("in_process")
def test_when_the_patience_is_spent_no_request_goes_on(
    tmp_path: Path, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PATIENCE", 0.0)
    studio.is_verified = lambda attempt: studio.requests[-1].tissue != "MUC"

    assert demo.main(["--json", "--out", str(tmp_path / "sheet.png")]) == 1

    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["tissue"]: row["attempts"] for row in rows if not row["verified"]} == {"MUC": 30}


@pytest.mark.usefixtures("in_process")
def test_one_tissue_out_of_attempts_gives_exit_code_1_and_a_sheet_of_the_rest(
    tmp_path: Path, studio: FakeStudio, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.is_verified = lambda attempt: studio.requests[-1].tissue != "MUC"

    assert demo.main(["--json", "--out", str(tmp_path / "sheet.png")]) == 1

    answer = json.loads(capsys.readouterr().out)
    assert [row["tissue"] for row in answer["rows"] if not row["verified"]] == ["MUC"]
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.usefixtures("in_process")
def test_a_tile_that_is_classified_as_something_else_gives_exit_code_1(
    tmp_path: Path, studio: FakeStudio
) -> None:
    studio.sees = "STR"

    assert demo.main(["--out", str(tmp_path / "sheet.png")]) == 1


@pytest.mark.usefixtures("in_process")
def test_nothing_verified_writes_no_sheet(tmp_path: Path, studio: FakeStudio) -> None:
    studio.is_verified = lambda attempt: False

    assert demo.main(["--out", str(tmp_path / "sheet.png")]) == 1
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.usefixtures("in_process")
def test_a_sheet_that_cannot_be_written_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--out", str(tmp_path / "missing" / "sheet.png")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_refused_call_ends_the_demo_with_the_servers_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATHSYNTH_WEIGHTS", str(tmp_path / "no weights here"))
    monkeypatch.setenv("PATHSYNTH_HOME", str(tmp_path / "home"))

    assert demo.main(["--out", str(tmp_path / "sheet.png")]) == 1
    error = capsys.readouterr().err
    assert "The demo failed" in error
    assert "Traceback" not in error
    assert not (tmp_path / "sheet.png").exists()


def test_a_server_that_dies_at_once_ends_the_demo_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = StdioServerParameters(command=sys.executable, args=["-c", "raise SystemExit(3)"])
    monkeypatch.setattr(demo, "server_parameters", lambda: dying)

    assert demo.main(["--out", str(tmp_path / "sheet.png")]) == 1
    assert "could not be reached" in capsys.readouterr().err
