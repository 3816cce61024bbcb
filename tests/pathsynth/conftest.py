"""What is slow to make, once for all tests of the library."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from pathsynth import evaluate
from pathsynth.text import TextEncoder, TissueResolver
from tests import tiny


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """accelerate keeps the precision of the first run of a process; the runs of the tests have several."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    """The real text encoder."""
    return TextEncoder()


@pytest.fixture(scope="session")
def resolver(encoder: TextEncoder) -> TissueResolver:
    return TissueResolver(encoder)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory, encoder: TextEncoder) -> Path:
    """A weights folder of toy size, to be read only; copy it to change it."""
    folder = tmp_path_factory.mktemp("tiny") / "weights"
    tiny.write_weights(folder, encoder)
    return folder


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short bootstrap, where the interval is not what is tested."""
    monkeypatch.setattr(evaluate, "BOOTSTRAP_SAMPLES", 20)
