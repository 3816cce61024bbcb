"""The command line of `pathsynth-mcp`."""

from pathlib import Path

import pytest

from pathsynth import __version__
from server.main import is_loopback, local_folders, main


@pytest.mark.parametrize(
    "arguments",
    [
        ["--transport", "http", "--host", "0.0.0.0"],
        ["--transport", "http", "--host", "192.168.1.5"],
        ["--transport", "http", "--host", "example.org"],
        ["--transport", "carrier-pigeon"],
        ["--port", "0"],
        ["--port", "http"],
    ],
)
def test_wrong_usage_exits_with_2_before_anything_is_served(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    assert capsys.readouterr().out == ""


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])

    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"pathsynth-mcp {__version__}\n"


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
