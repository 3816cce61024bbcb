"""What `pathsynth doctor` looks at, without the models."""

from pathlib import Path

import pytest

from pathsynth import doctor
from pathsynth.errors import WeightsError


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty place to look at, and no measurement of speed."""
    for name in ("HOME", "DATA", "WEIGHTS"):
        monkeypatch.setenv(f"PATHSYNTH_{name}", str(tmp_path / name.lower()))
    monkeypatch.setattr(doctor, "_matmul_gflops", lambda: {"float32": 100.0})


def finding(name: str) -> doctor.Finding:
    return next(each for each in doctor.examine().findings if each.name == name)


def test_missing_weights_are_found_and_nothing_is_generated() -> None:
    diagnosis = doctor.examine()
    assert not diagnosis.ok
    assert diagnosis.model is None
    assert diagnosis.seconds_per_layout_tile is None
    assert not finding("weights").ok
    assert "PATHSYNTH_WEIGHTS" in finding("weights").detail


def test_missing_data_is_said_but_does_not_matter() -> None:
    assert not finding("data").ok
    assert not finding("data").required
    assert "pathsynth data fetch" in finding("data").detail


def test_data_is_found_by_its_sizes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("pathmnist.npz", "pathmnist_128.npz"):
        (tmp_path / "data" / name).touch()
    assert finding("data").ok
    assert "28, 128 px" in finding("data").detail


def test_a_home_that_cannot_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding("image store").ok
    (tmp_path / "file").touch()
    monkeypatch.setenv("PATHSYNTH_HOME", str(tmp_path / "file" / "home"))
    assert not finding("image store").ok


def test_another_text_encoder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding("text encoder").ok
    monkeypatch.setenv("PATHSYNTH_TEXT_ENCODER", str(tmp_path))
    assert not finding("text encoder").ok


def test_a_failing_generation_is_a_finding_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathsynth import studio

    def broken(*_: object, **__: object) -> None:
        raise WeightsError("The weights lack a file; install them again.")

    monkeypatch.setattr(studio.Studio, "generate", broken)
    found, seconds = doctor._generation()
    assert (found.ok, found.detail, seconds) == (False, "The weights lack a file; install them again.", None)


def test_packages_are_named_with_their_versions() -> None:
    packages = doctor.examine().packages
    assert packages["torch"]
    assert set(packages) == set(doctor.PACKAGES)


def test_the_steps_are_told_as_they_come() -> None:
    steps: list[str] = []
    doctor.examine(steps.append)
    assert steps[0] == "Weights"
    assert len(steps) == len(set(steps)) == 4
