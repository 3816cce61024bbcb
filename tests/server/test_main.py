"""The command line of `pathsynth-mcp`."""

import gc
import os
import socket
from pathlib import Path

import pytest

from pathsynth import __version__
from server.access import is_loopback, read_token
from server.main import collect_garbage_rarely, local_folders, main, wait_without_spinning

TOKEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATHSYNTH_TOKEN", raising=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--transport", "http", "--host", "0.0.0.0"],
        ["--transport", "http", "--host", "192.168.1.5"],
        ["--transport", "http", "--host", "example.org"],
        ["--transport", "carrier-pigeon"],
        ["--port", "0"],
        ["--port", "http"],
        ["--port", "65536"],
        ["--transport", "http", "--host", ""],
        ["--transport", "http", "--host", "::"],
        ["--transport", "http", "--token", TOKEN],
        ["--transport", "http", f"--token={TOKEN}"],
        ["--token", TOKEN],
        ["--transport", "http", "--token-file", "no such file"],
        ["--transport", "http", "--token-file", "."],
        ["--transport", "http", "--allowed-host", "http://tiles.example"],
        ["--transport", "http", "--allowed-host", "*"],
        ["--token-file", "token"],
        ["--allowed-host", "tiles.example"],
        ["--transp", "http"],
        ["serve"],
    ],
)
def test_wrong_usage_exits_with_2_and_one_sentence_before_anything_is_served(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pathsynth-mcp: ")
    assert said.err.endswith(".\n")
    assert said.err.count("\n") == 1
    assert TOKEN not in said.err


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        ("", "0 characters"),
        ("  \n", "0 characters"),
        ("fifteen-letters", "15 characters"),
        ("sixteen letters!", "letters, digits"),
        ("zw\u00f6lf-und-vier-mehr", "letters, digits"),
        ("line-one-of-two\nline-two-of-two", "letters, digits"),
    ],
)
@pytest.mark.parametrize("place", ["file", "environment"])
def test_a_token_that_is_short_or_unfit_for_a_header_is_refused_and_not_repeated(
    place: str,
    token: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--transport", "http"]
    if place == "file":
        (tmp_path / "token").write_text(token, encoding="utf-8")
        arguments += ["--token-file", str(tmp_path / "token")]
    else:
        monkeypatch.setenv("PATHSYNTH_TOKEN", token)

    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert problem in said
    assert not token.strip() or token not in said


def test_the_token_of_the_file_goes_before_that_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    environment = {"PATHSYNTH_TOKEN": "another-long-token"}

    assert read_token(tmp_path / "token", environment) == TOKEN
    assert read_token(None, environment) == "another-long-token"
    assert read_token(None, {}) is None


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_cannot_be_had_is_said_in_a_sentence(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATHSYNTH_TOKEN", TOKEN)

    assert main(["--transport", "http", "--host", host]) == 1

    said = capsys.readouterr().err
    assert said.startswith(f"pathsynth-mcp: cannot listen at {host}, port 8765 (")
    assert said.count("\n") == 1


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])

    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"pathsynth-mcp {__version__}\n"


def test_a_name_of_this_machine_that_leads_elsewhere_is_not_served_without_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("server.http.listen", lambda host, port: socket.create_server(("0.0.0.0", 0)))

    assert main(["--transport", "http", "--host", "localhost"]) == 1

    assert "0.0.0.0" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_a_loopback_address_is_known_as_one(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", ""])
def test_any_other_address_is_not_taken_for_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_the_whole_disk_is_never_readable_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")

    assert Path("/") not in local_folders()
    assert Path.home().resolve() in local_folders()


@pytest.mark.parametrize(("chosen", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, expected: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_garbage_is_looked_for_rarely_since_libraries_stay() -> None:
    before = gc.get_threshold()
    try:
        collect_garbage_rarely()
        assert gc.isenabled()
        assert gc.get_threshold()[0] > 50 * 700
    finally:
        gc.set_threshold(*before)
