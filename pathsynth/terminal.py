"""What the commands of `pathsynth` share: options, progress on stderr, JSON on stdout."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pathsynth.errors import RequestError
from pathsynth.progress import Progress as OnProgress
from pathsynth.records import MAX_SEED

if TYPE_CHECKING:
    from pathsynth.studio import Studio

SECONDS_BETWEEN_LINES: Final = 30

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON to stdout.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Same request, same seed: same tiles.")]


def open_studio() -> "Studio":
    """A studio with everything in its place; imported late, since `--help` needs no torch."""
    from pathsynth.studio import Studio

    return Studio()


def print_json(answer: object) -> None:
    """One JSON value on stdout."""
    print(json.dumps(answer, ensure_ascii=False))


@contextmanager
def progress(title: str) -> Iterator[OnProgress]:
    """Shows (done, total, message) on stderr: a bar that goes when the work is done, or, where stderr is no
    terminal, a line every half minute.
    """
    if not (sys.stderr.isatty() and is_main_process()):
        yield _line_progress(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(title), total=None)

        def show(done: int, total: int, message: str) -> None:
            bar.update(task, completed=done, total=total, description=escape(message or title))

        yield show


def _line_progress(title: str) -> OnProgress:
    last = time.monotonic()

    def show(done: int, total: int, message: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{title}: {done} of {total or '?'}, {message}", file=sys.stderr, flush=True)

    return show


def make_folder(folder: Path) -> None:
    """Make `folder` with its parents; raises RequestError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"The folder {folder} cannot be made ({error.strerror or error}); choose another one."
        ) from error


def is_main_process() -> bool:
    """Whether this is the one process that speaks, where `accelerate launch` started several."""
    return os.environ.get("RANK", "0") == "0"
