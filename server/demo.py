"""The whole of PathSynth in one go: `python -m server.demo`.

Starts the MCP server as a subprocess, connects with the official client over stdio, asks for one tile of each
tissue, has each delivered tile classified in a second call, prints a table and writes a contact sheet. Exit
code 0 only when every tile is verified and classified as what was asked.
"""

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import CallToolResult, ImageContent, TextContent
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from pathsynth.errors import PathSynthError
from pathsynth.images import contact_sheet, encode_png, read_image
from pathsynth.provenance import provenance_text
from pathsynth.records import Classification, GenerationResult, TileRecord
from pathsynth.tissues import TISSUES
from tools import classify_image, generate_tissue_image

CALL_TIMEOUT = 120.0
"""Seconds to wait for one call; the first loads the models."""

PATIENCE = 100.0
"""Seconds after which no call is made any more for a tissue that was not verified the first time."""

_MORE_ATTEMPTS = 30

_SHEET_COLUMNS = 3

OnStatus = Callable[[str], None]


class DemoError(PathSynthError):
    """The server could not be started, or refused a call."""


class Row(BaseModel):
    """One line of the table. `predicted` and `confidence` come from classifying the delivered tile anew;
    `seconds` is the wall time of the generating calls, as the client sees it; `record` is no part of the
    JSON."""

    tissue: str
    label: str
    predicted: str | None
    confidence: float | None
    attempts: int
    seconds: float
    verified: bool
    image_id: str | None
    record: TileRecord | None = Field(default=None, exclude=True)


@dataclass(frozen=True)
class _Answer:
    """What one tissue has come to: its row, its picture (224, 224, 3) if there is one, and its request."""

    row: Row
    picture: npt.NDArray[np.uint8] | None
    request_id: str | None


def server_parameters() -> StdioServerParameters:
    """How to start the server with this Python, in this environment."""
    return StdioServerParameters(command=sys.executable, args=["-m", "server.main"], env=dict(os.environ))


async def ask_for_every_tissue(
    client: Client, seed: int, on_status: OnStatus
) -> tuple[list[Row], list[npt.NDArray[np.uint8]]]:
    """One tile of each tissue, in PathMNIST order; then the requests that fell short go on, for as long as
    the patience lasts.

    Returns:
        A row for each tissue, and the picture, uint8 (224, 224, 3), of each verified one.
    """
    deadline = time.perf_counter() + PATIENCE
    answers = [
        await _ask(client, tissue.code, {"tissue": tissue.code, "count": 1, "seed": seed}, on_status)
        for tissue in TISSUES
    ]
    answers = [await _go_on(client, answer, deadline, on_status) for answer in answers]
    pictures = [answer.picture for answer in answers if answer.picture is not None]
    return [answer.row for answer in answers], pictures


async def _go_on(client: Client, answer: _Answer, deadline: float, on_status: OnStatus) -> _Answer:
    """Go on with a request as long as it lacks its tile, and attempts and time are left."""
    limit = generate_tissue_image.MAX_TRIES
    while answer.picture is None and answer.row.attempts < limit and time.perf_counter() < deadline:
        attempts, seconds = answer.row.attempts, answer.row.seconds
        more = {
            "continue_request": answer.request_id,
            "max_attempts": min(attempts + _MORE_ATTEMPTS, limit),
        }
        answer = await _ask(client, answer.row.tissue, more, on_status)
        answer.row.seconds = round(answer.row.seconds + seconds, 2)
    return answer


async def _ask(client: Client, code: str, arguments: dict[str, Any], on_status: OnStatus) -> _Answer:
    """One generating call, and the classification of what it delivers."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        on_status(f"{code}: {message or progress}")

    started = time.perf_counter()
    made = await client.call_tool(
        generate_tissue_image.NAME,
        arguments,
        read_timeout_seconds=CALL_TIMEOUT,
        progress_callback=on_progress,
    )
    seconds = time.perf_counter() - started
    result = GenerationResult.model_validate_json(_text(made))
    row = Row(
        tissue=code,
        label=result.label,
        predicted=None,
        confidence=None,
        attempts=result.attempts,
        seconds=round(seconds, 2),
        verified=False,
        image_id=None,
    )
    if not result.tiles:
        return _Answer(row, None, result.request_id)
    image_id = result.tiles[0].image_id
    seen = await client.call_tool(classify_image.NAME, {"image": image_id}, read_timeout_seconds=CALL_TIMEOUT)
    classification = Classification.model_validate_json(_text(seen))
    update = {
        "predicted": classification.tissue,
        "confidence": classification.confidence,
        "verified": result.verified and classification.tissue == code,
        "image_id": image_id,
        "record": result.tiles[0],
    }
    pictures = [block for block in made.content if isinstance(block, ImageContent)]
    picture = read_image(base64.b64decode(pictures[0].data))
    return _Answer(row.model_copy(update=update), picture, result.request_id)


def _text(result: CallToolResult) -> str:
    """The first text of a result. Raises DemoError with that text when the call failed."""
    text = next((block.text for block in result.content if isinstance(block, TextContent)), "")
    if result.is_error:
        raise DemoError(text or "The server refused a call without a reason.")
    return text


async def run(seed: int, on_status: OnStatus) -> tuple[list[Row], list[npt.NDArray[np.uint8]]]:
    """Start the server, ask for everything, stop the server.

    Raises:
        DemoError: the server could not be started, went away, or refused a call.
    """
    on_status("Starting the server")
    try:
        async with Client(server_parameters()) as client:
            return await ask_for_every_tissue(client, seed, on_status)
    except* (DemoError, MCPError, OSError) as group:
        first = _first(group)
        reason = str(first) if isinstance(first, DemoError) else f"The server could not be reached: {first}."
    raise DemoError(reason)


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    """The first single exception of a group, which the client's task groups nest."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    shown = Table(title="One verified tile of each tissue, over MCP")
    for heading in ("asked", "tissue", "predicted"):
        shown.add_column(heading)
    for heading in ("confidence", "attempts", "seconds"):
        shown.add_column(heading, justify="right")
    shown.add_column("verified")
    for row in rows:
        confidence = "-" if row.confidence is None else f"{row.confidence:.3f}"
        verified = "yes" if row.verified else "[red]no[/red]"
        shown.add_row(
            row.tissue,
            row.label,
            row.predicted or "-",
            confidence,
            str(row.attempts),
            f"{row.seconds:.2f}",
            verified,
        )
    return shown


def write_sheet(rows: Sequence[Row], pictures: Sequence[npt.NDArray[np.uint8]], path: Path) -> None:
    """Write the pictures as one PNG. Raises DemoError when the file cannot be written."""
    delivered = [row for row in rows if row.image_id is not None]
    captions = [f"{row.tissue} {row.confidence:.2f}" for row in delivered if row.confidence is not None]
    records = [row.record for row in delivered if row.record is not None]
    sheet = encode_png(
        contact_sheet(pictures, captions, _SHEET_COLUMNS),
        provenance_text(records, f"Contact sheet of {len(delivered)} synthetic tiles"),
    )
    try:
        path.write_bytes(sheet)
    except OSError as error:
        raise DemoError(
            f"The contact sheet cannot be written to {path}: {error.strerror or error}."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 0 when all tiles are verified, 1 when not, 130 when interrupted."""
    options = _parse(argv)
    console = Console(stderr=True)
    started = time.perf_counter()
    try:
        with console.status("Starting") as status:
            rows, pictures = anyio.run(run, options.seed, status.update)
        if pictures:
            write_sheet(rows, pictures, options.out)
    except PathSynthError as error:
        console.print(f"The demo failed: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    seconds = round(time.perf_counter() - started, 2)
    verified = all(row.verified for row in rows)
    sheet = str(options.out) if pictures else None
    if options.json:
        answer: dict[str, Any] = {
            "rows": [row.model_dump() for row in rows],
            "verified": verified,
            "contact_sheet": sheet,
            "seconds": seconds,
            "synthetic": True,
        }
        print(json.dumps(answer))
    else:
        output = Console()
        output.print(table(rows))
        count = sum(row.verified for row in rows)
        output.print(
            f"{count} of {len(rows)} verified in {seconds:.1f} s."
            + (f" Contact sheet: {sheet}" if sheet else "")
        )
    return 0 if verified else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m server.demo", description="One verified tile of each tissue over MCP."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo.png"), help="contact sheet to write (default: ./demo.png)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every request (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
