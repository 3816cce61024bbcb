"""What a running tool shares with its client: progress, cancellation, its time budget, the compact answer.

Tools are plain functions that the SDK runs in a worker thread, so both directions go through
`anyio.from_thread`.
"""

import concurrent.futures
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.from_thread
from mcp.server.mcpserver import Context
from mcp_types import TextContent
from pydantic import BaseModel

from tools.queue import Line, WorkQueue

TIME_BUDGET = 40.0
"""Seconds a call may take. Clients give up after 45 to 60 s, and few of them reset the clock on progress."""

ANSWER_SECONDS = 2.0
"""What of it is kept for drawing and sending the answer."""

RESULT_BYTES = 300_000
"""Largest result, as JSON; clients cut or drop larger ones."""

_SMALL_STEP = 1e-3


def check_cancelled() -> None:
    """Raise the event loop's own cancellation exception once the client has given up on this call."""
    anyio.from_thread.check_cancelled()


class ProgressReporter:
    """Sends progress to the client of one call, from the worker thread that runs it; every report also
    checks for cancellation. Values that do not grow are dropped, since the protocol asks for growing ones."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._last = -1.0

    def __call__(self, done: float, total: int, message: str) -> None:
        """Report `done` of `total`. Raises the cancellation exception when the client has given up."""
        check_cancelled()
        if done <= self._last:
            return
        self._last = done
        try:
            anyio.from_thread.run(partial(self._context.report_progress, done, total, message))
        except concurrent.futures.CancelledError:
            # The client gave up while the report was on its way: leave the way every other cancellation does.
            check_cancelled()
            raise

    def note(self, total: int, message: str) -> None:
        """Tell something while nothing of `total` is done yet; the value grows by next to nothing."""
        self(0 if self._last < 0 else self._last + _SMALL_STEP, total, message)


def new_deadline() -> float:
    """Time of `time.monotonic` until which a call that begins now may wait and work."""
    return time.monotonic() + TIME_BUDGET - ANSWER_SECONDS


def seconds_left(deadline: float) -> float:
    """Seconds until `deadline`; a moment when it has passed, so that what is known already is answered."""
    return max(_SMALL_STEP, deadline - time.monotonic())


@contextmanager
def turn(
    queue: WorkQueue, line: Line, deadline: float, progress: ProgressReporter, total: int = 1
) -> Iterator[None]:
    """A turn in the queue of the server: the place is told as progress, and a client that gives up leaves at
    once.

    Raises:
        QueueFullError: too many calls wait.
        OutOfTimeError: the turn did not come by `deadline`.
    """

    def on_position(before: int) -> None:
        calls = "1 call" if before == 1 else f"{before} calls"
        progress.note(total, f"Waiting in the queue: {calls} before this one")

    with queue.turn(line, deadline=deadline, on_position=on_position, check_cancelled=check_cancelled):
        yield


def as_text(answer: BaseModel) -> TextContent:
    """An answer as compact JSON, for clients that show the text of a result to the model."""
    return TextContent(type="text", text=answer.model_dump_json())
