"""The `pathsynth` command: words from a terminal to calls of the library, and its answers back.

With `--json` the answer is one JSON value on stdout, and on failure `{"error": sentence}`. Progress and
sentences for people who wait go to stderr. Exit code 0 is done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pathsynth import __version__, terminal
from pathsynth.errors import PathSynthError, RequestError
from pathsynth.evaluate_commands import evaluate_app
from pathsynth.records import (
    MAX_ATTEMPTS,
    MAX_COUNT,
    AttemptRecord,
    GenerationResult,
    TileRecord,
)
from pathsynth.store import home, write_atomically
from pathsynth.terminal import Json, Seed
from pathsynth.tissues import CODES

if TYPE_CHECKING:
    from pathsynth.doctor import Diagnosis
    from pathsynth.studio import Studio
    from pathsynth.validator import Validator

FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130

NOTICE: Final = "Synthetic, for teaching; not for diagnosis."

app = typer.Typer(
    name="pathsynth",
    help="Verified synthetic colorectal histopathology tiles. For teaching, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="PathMNIST, which training and evaluation read.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(data_app, name="data")


class TileEdge(StrEnum):
    """Edge of a generated tile in px."""

    NATIVE = "28"
    DETAILED = "224"


class DataEdge(StrEnum):
    """Edge of PathMNIST's tiles in px."""

    PX_28 = "28"
    PX_64 = "64"
    PX_128 = "128"
    PX_224 = "224"


class Model(StrEnum):
    """Models that can be trained."""

    VALIDATOR = "validator"
    JUDGE = "judge"
    BASE = "base"
    LORA = "lora"
    DETAIL = "detail"


Base = Annotated[
    str | None,
    typer.Option(
        help="Stable Diffusion checkpoint to use instead: a folder in diffusers' layout, or a hub id."
    ),
]


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process, and return the exit code.

    Raises nothing for a failure that PathSynth knows, nor for Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        code = app(args=arguments, prog_name="pathsynth", standalone_mode=False)
        sys.stdout.flush()
    except PathSynthError as error:
        return _fail(str(error), FAILED, arguments)
    except typer.TyperException as error:
        return _fail(error.format_message(), error.exit_code, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Interrupted.", INTERRUPTED, arguments)
    except BrokenPipeError:  # whoever read our output has gone, for instance `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if code == INTERRUPTED:
        return _fail("Interrupted.", INTERRUPTED, arguments)
    return code if isinstance(code, int) else 0


def _fail(sentence: str, code: int, arguments: Sequence[str]) -> int:
    """Say what went wrong: to stderr for a person, and to stdout as JSON when that was asked for."""
    if "--json" in arguments:
        print(json.dumps({"error": sentence}))
    if sentence:
        print(f"pathsynth: {sentence}", file=sys.stderr)
    if code == WRONG_USAGE:
        print("Try `pathsynth --help`, or `pathsynth COMMAND --help`.", file=sys.stderr)
    return code


def _validator() -> "Validator":
    """The validator itself, whose inside an explanation looks at."""
    from pathsynth.outliers import load_validator
    from pathsynth.weights import Weights

    return load_validator(Weights())


def _version(asked: bool) -> None:
    if asked:
        print(f"pathsynth {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before every command."""


@app.command()
def generate(
    description: Annotated[str, typer.Argument(help="What to show, in words.")],
    tissue: Annotated[
        str | None,
        typer.Option(
            help=f"Tissue code ({', '.join(CODES)}); worked out from the description when left out."
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=MAX_COUNT, help="How many verified tiles.")
    ] = 1,
    seed: Seed = 0,
    size: Annotated[TileEdge, typer.Option(help="Edge in px.")] = TileEdge.DETAILED,
    min_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Calibrated probability that a tile needs to be kept.")
    ] = 0.9,
    max_attempts: Annotated[
        int, typer.Option(min=1, max=MAX_ATTEMPTS, help="Proposals to make at most, all tiles together.")
    ] = 30,
    out: Annotated[
        Path | None, typer.Option(help="Folder for copies of the tiles; they are in the image store anyway.")
    ] = None,
    base: Base = None,
    lora: Annotated[
        Path | None,
        typer.Option(help="Folder of a LoRA adapter trained on --base; without it, the checkpoint alone."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Make tiles from a description; only tiles that the validator agrees with are kept.

    Exit code 1 when fewer tiles than asked were verified; those that were are kept all the same.
    """
    from pathsynth.studio import GenerationRequest, Studio

    request = GenerationRequest.checked(
        description=description,
        tissue=tissue,
        count=count,
        seed=seed,
        size=int(size),
        min_confidence=min_confidence,
        max_attempts=max_attempts,
    )
    if lora is not None and base is None:
        raise RequestError("--lora belongs to a checkpoint; give that one with --base.")
    if out is not None:
        terminal.make_folder(out)
    studio = terminal.open_studio() if base is None else Studio(base=base, lora=lora)
    with terminal.progress("Generating") as show:
        kept, tried = 0, 0

        def on_attempt(attempt: AttemptRecord, _: int) -> None:
            nonlocal kept, tried
            tried += 1
            kept += attempt.verified
            verdict = "verified" if attempt.verified else "discarded"
            show(kept, count, f"Attempt {tried}: {attempt.predicted} {attempt.confidence:.2f}, {verdict}")

        result = studio.generate(request, on_attempt=on_attempt, check_cancelled=None)
    files = _copies(studio, result.tiles, out)
    if as_json:
        terminal.print_json(result.model_dump(mode="json") | {"files": [str(file) for file in files]})
    else:
        _print_generation(result, files)
    return 0 if result.verified else FAILED


def _copies(studio: "Studio", tiles: Sequence[TileRecord], out: Path | None) -> list[Path]:
    """Where the tiles are: in the store, or copied to `out` as CODE-SEED-ID.png, large ones with the visible
    mark.
    """
    from pathsynth.images import encode_png
    from pathsynth.mark import marked
    from pathsynth.provenance import provenance_text

    files = []
    for tile in tiles:
        stored = studio.store.get(tile.image_id)
        path = stored.path
        if out is not None:
            path = out / f"{tile.tissue}-{tile.seed}-{tile.image_id}.png"
            write_atomically(path, encode_png(marked(stored.pixels()), provenance_text([stored.record])))
        files.append(path)
    return files


@app.command()
def variations(
    image_id: Annotated[str, typer.Argument(help="Id of a stored tile, detailed or of 28 px.")],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=MAX_COUNT, help="How many other details.")
    ] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder for copies of the tiles.")] = None,
    as_json: Json = False,
) -> int:
    """Give the layout of a stored tile other details; what was verified in it stays.

    Exit code 1 when fewer were verified than asked for; those that were are kept all the same.
    """
    if out is not None:
        terminal.make_folder(out)
    studio = terminal.open_studio()
    with terminal.progress("Varying") as show:
        show(0, count, "Adding detail")
        made = studio.variations(image_id, count)
    files = _copies(studio, made, out)
    if as_json:
        tiles = [tile.model_dump(mode="json") for tile in made]
        terminal.print_json({"tiles": tiles, "files": [str(file) for file in files]})
    else:
        output = Console()
        for tile, file in zip(made, files, strict=True):
            output.print(
                f"variation {tile.variation}: {tile.tissue} {tile.confidence:.3f}, {file}", markup=False
            )
        output.print(f"{len(made)} of {count} variations verified. {NOTICE}", markup=False)
    return 0 if len(made) == count else FAILED


def _print_generation(result: GenerationResult, files: Sequence[Path]) -> None:
    output = Console()
    if result.tiles:
        table = Table("tissue", "confidence", "seed", "size", "file")
        for tile, file in zip(result.tiles, files, strict=True):
            table.add_row(
                tile.tissue, f"{tile.confidence:.3f}", str(tile.seed), f"{tile.size} px", escape(str(file))
            )
        output.print(table)
    output.print(f"{result.message} {NOTICE}", markup=False)


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    explain: Annotated[
        Path | None,
        typer.Option(
            help="Folder for overlays that show where the validator looked (Grad-CAM, 7 x 7 places)."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Name the tissue in images, and say when an image is no colorectal H&E tile or is one of ours.

    An image that cannot be read does not keep the others from being classified; the exit code is 1 then.
    """
    if explain is not None:
        terminal.make_folder(explain)
    studio = terminal.open_studio()
    answers: list[dict[str, Any]] = []
    with terminal.progress("Classifying") as show:
        validator = None if explain is None else _validator()
        for done, path in enumerate(images):
            show(done, len(images), path.name)
            try:
                answer = studio.classify(path, path.name).model_dump(mode="json")
                if explain is not None and validator is not None:
                    target = explain / f"{done + 1:03d}-{path.stem}-{answer['tissue']}.png"
                    is_ours = answer["synthetic_origin"] is not None
                    _explain(validator, path, answer["tissue"], target, is_ours=is_ours)
                    answer["explanation"] = str(target)
            except PathSynthError as error:
                answer = {"image": path.name, "error": str(error)}
            answers.append(answer)
    failures = [answer for answer in answers if "error" in answer]
    if as_json:
        terminal.print_json(answers)
    else:
        _print_classifications([answer for answer in answers if "error" not in answer])
    for failure in failures:
        print(f"pathsynth: {failure['error']}", file=sys.stderr)
    return FAILED if failures else 0


def _explain(validator: "Validator", path: Path, tissue: str, target: Path, *, is_ours: bool) -> None:
    """Write the overlay of one image to `target`; over a synthetic image it says that it is synthetic too."""
    from pathsynth.explain import overlay
    from pathsynth.images import encode_png, read_image
    from pathsynth.provenance import provenance_text

    picture = overlay(validator.model, read_image(path), tissue)
    note = f"Grad-CAM of the validator for {tissue}. Not for diagnosis."
    origin = provenance_text((), "Overlay on a synthetic tile") if is_ours else {}
    write_atomically(target, encode_png(picture, {"Comment": note} | origin))


def _print_classifications(answers: Sequence[dict[str, Any]]) -> None:
    output = Console()
    for answer in answers:
        output.print(f"{answer['image']}: {answer['verdict']}", markup=False)
        if answer["synthetic_origin"] is not None:
            output.print(f"  {answer['synthetic_origin']['statement']}", markup=False)
        if "explanation" in answer:
            output.print(f"  overlay: {answer['explanation']}", markup=False)
    if answers:
        output.print("Not for diagnosis.")


@app.command()
def train(
    model: Annotated[Model, typer.Argument(help="Which model.")],
    config: Annotated[Path, typer.Option(help="TOML file with the settings.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints and the result; default: runs/MODEL in the user's data."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")
    ] = False,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Stop with a checkpoint after this many minutes.")
    ] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Train one model on PathMNIST. Ctrl-C keeps the last checkpoint."""
    if not config.is_file():
        raise RequestError(f"There is no configuration file {config}; give the path of a TOML file.")
    from pathsynth.training import start

    folder = out or home() / "runs" / model.value
    terminal.make_folder(folder)
    with terminal.progress(f"Training {model.value}") as show:
        try:
            if base is None:
                summary = start(model.value, config, folder, resume, max_minutes, show)
            else:
                summary = start(model.value, config, folder, resume, max_minutes, show, base)
        except KeyboardInterrupt:
            print(f"The last checkpoint is in {folder}; go on with --resume.", file=sys.stderr)
            raise
    if not terminal.is_main_process():
        return
    if as_json:
        terminal.print_json({key: _finite(value) for key, value in summary.items()})
    else:
        for key, value in summary.items():
            print(f"{key}: {value}")


def _finite(value: object) -> object:
    """JSON knows no NaN; a figure that was not measured, as the loss of a run already complete, is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@data_app.command("fetch")
def data_fetch(
    size: Annotated[DataEdge, typer.Option(help="Edge of the tiles in px.")] = DataEdge.PX_28,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder for the archive; default: PATHSYNTH_DATA, else medmnist's own."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch PathMNIST through medmnist and check it; goes on where an earlier download was cut."""
    from pathsynth.data import fetch

    with terminal.progress("Fetching") as show:
        path = fetch(int(size), root, lambda done, total: show(done >> 20, total >> 20, "Fetching, MiB"))
    if as_json:
        terminal.print_json({"path": str(path), "size": int(size), "bytes": path.stat().st_size})
    else:
        print(f"PathMNIST at {size.value} px is at {path}.")


@app.command()
def doctor(as_json: Json = False) -> int:
    """Say what is installed, found and verified, and how fast this machine is."""
    from pathsynth.doctor import examine

    with terminal.progress("Looking") as show:
        diagnosis = examine(lambda step: show(0, 0, step))
    if as_json:
        terminal.print_json(diagnosis.model_dump(mode="json"))
    else:
        _print_diagnosis(diagnosis)
    return 0 if diagnosis.ok else FAILED


def _print_diagnosis(diagnosis: "Diagnosis") -> None:
    output = Console()
    output.print(
        f"PathSynth {diagnosis.pathsynth}, Python {diagnosis.python}, {diagnosis.platform}, "
        f"{diagnosis.processors} processors",
        markup=False,
    )
    packages = ", ".join(f"{name} {found or 'missing'}" for name, found in diagnosis.packages.items())
    output.print(packages, markup=False, highlight=False)
    for finding in diagnosis.findings:
        mark = "ok" if finding.ok else "WRONG" if finding.required else "absent"
        output.print(f"{mark:>6}  {finding.name}: {finding.detail}", markup=False, highlight=False)
    speeds = ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in diagnosis.matmul_gflops.items())
    output.print(f"Matrix products: {speeds}", markup=False)
    if diagnosis.seconds_per_layout_tile is not None:
        output.print(f"One 28-px proposal: {diagnosis.seconds_per_layout_tile:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
