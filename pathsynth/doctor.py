"""`pathsynth doctor`: what is installed, found, verified, and how fast this machine is."""

import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, get_args

from pydantic import Field

from pathsynth import __version__
from pathsynth.data import TileSize, archive_path, available
from pathsynth.errors import PathSynthError
from pathsynth.records import Record
from pathsynth.store import ImageStore
from pathsynth.tissues import TISSUES

PACKAGES: Final = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "medmnist",
    "pydantic",
    "typer",
    "mcp",
)
MATMUL_EDGE: Final = 2048

_REPEATS: Final = 5
_TIMED_TILES: Final = 4

OnStep = Callable[[str], None]


class Finding(Record):
    """One thing that was looked at. `detail` says what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    required: bool = Field(description="Whether PathSynth cannot make a tile without it.")
    detail: str


class Diagnosis(Record):
    """What `pathsynth doctor` found. `ok` is true when everything that is required is in order."""

    ok: bool
    pathsynth: str
    python: str
    platform: str
    processors: int
    packages: dict[str, str | None] = Field(
        description="Version of each package, null when it is not installed."
    )
    model: str | None = Field(description="Short hash of the weights, null when they are not in order.")
    findings: list[Finding]
    matmul_gflops: dict[str, float] = Field(
        description="GFLOP/s of a 2048-cube matrix product, by number format."
    )
    seconds_per_layout_tile: float | None = Field(description="Seconds for one warm 28-px proposal, checked.")


def examine(on_step: OnStep = lambda _: None) -> Diagnosis:
    """Look at everything; takes some ten seconds, most of them to load the models.

    What is wrong becomes a finding and is not raised. `on_step` hears what is looked at next.
    """
    from pathsynth.threads import available_processors

    on_step("Weights")
    weights, model = _weights()
    findings = [weights]
    on_step("Text encoder")
    findings.append(_checked("text encoder", True, _text_encoder))
    on_step("Data and image store")
    findings.append(_data())
    findings.append(_checked("image store", True, _image_store))
    on_step("Speed of matrix products")
    gflops = _matmul_gflops()
    seconds = None
    if model is not None:
        on_step("Speed of generation")
        generation, seconds = _generation()
        findings.append(generation)
    return Diagnosis(
        ok=all(finding.ok for finding in findings if finding.required),
        pathsynth=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        processors=available_processors(),
        packages={name: _version(name) for name in PACKAGES},
        model=model,
        findings=findings,
        matmul_gflops=gflops,
        seconds_per_layout_tile=seconds,
    )


def _checked(name: str, required: bool, look: Callable[[], str]) -> Finding:
    """The finding of a look that raises a PathSynthError when something is wrong."""
    try:
        return Finding(name=name, ok=True, required=required, detail=look())
    except PathSynthError as error:
        return Finding(name=name, ok=False, required=required, detail=str(error))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _weights() -> tuple[Finding, str | None]:
    from pathsynth.weights import Weights

    models: list[str] = []

    def look() -> str:
        weights = Weights()
        models.append(weights.model)
        count = len(weights.manifest.files)
        return f"{weights.folder}: {count} files match their manifest, model {weights.model}"

    finding = _checked("weights", True, look)
    return finding, models[0] if models else None


def _text_encoder() -> str:
    from pathsynth.text import check_encoder, encoder_folder

    folder = encoder_folder()
    check_encoder(folder)
    return f"{folder}: the published all-MiniLM-L6-v2"


def _data() -> Finding:
    """PathMNIST is needed for training and for measuring the validator, not for generating."""
    sizes = [size for size in get_args(TileSize) if available(size)]
    folder = archive_path(28).parent
    detail = (
        f"{folder}: PathMNIST at {', '.join(map(str, sizes))} px"
        if sizes
        else f"{folder} holds no PathMNIST; run `pathsynth data fetch` to train or to evaluate the validator."
    )
    return Finding(name="data", ok=bool(sizes), required=False, detail=detail)


def _image_store() -> str:
    store = ImageStore()
    store.check_writable()
    return f"{store.root}: writable, {len(store.ids())} images"


def _matmul_gflops() -> dict[str, float]:
    """GFLOP/s of the best of a few 2048-cube products; bfloat16 only where the processor is fast at it."""
    import torch

    from pathsynth.training.engine import has_fast_bfloat16

    formats = {"float32": torch.float32}
    if has_fast_bfloat16():
        formats["bfloat16"] = torch.bfloat16
    result = {}
    for name, dtype in formats.items():
        factor = torch.ones(MATMUL_EDGE, MATMUL_EDGE, dtype=dtype)
        durations = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            torch.mm(factor, factor)
            durations.append(time.perf_counter() - started)
        result[name] = round(2 * MATMUL_EDGE**3 / min(durations) / 1e9, 1)
    return result


def _generation() -> tuple[Finding, float | None]:
    """Make a few 28-px proposals in a store of their own, the first to load the models, the others timed."""
    from pathsynth.studio import GenerationRequest, Studio

    timed: list[float] = []

    def look() -> str:
        with tempfile.TemporaryDirectory(prefix="pathsynth-doctor-") as folder:
            studio = Studio(home=Path(folder))
            for seed in (0, _TIMED_TILES):
                request = GenerationRequest.checked(
                    description=TISSUES[0].prompt,
                    tissue=TISSUES[0].code,
                    count=_TIMED_TILES,
                    seed=seed,
                    size=28,
                    min_confidence=0.0,
                    max_attempts=_TIMED_TILES,
                )
                started = time.perf_counter()
                result = studio.generate(request, on_attempt=None, check_cancelled=None)
                timed.append((time.perf_counter() - started) / max(1, result.attempts))
        first = timed[0] * _TIMED_TILES
        return f"{timed[-1]:.2f} s for one 28-px proposal, {first:.1f} s for the first {_TIMED_TILES}"

    finding = _checked("generation", True, look)
    return finding, round(timed[-1], 3) if finding.ok else None
