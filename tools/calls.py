"""What a running tool shares with its client: progress, cancellation, its time budget, the compact answer.

Tools are plain functions that the SDK runs in a worker thread, so both directions go through
`anyio.from_thread`.
"""

import concurrent.futures
from functools import partial

import anyio
import anyio.from_thread
from mcp.server.mcpserver import Context
from mcp_types import TextContent
from pydantic import BaseModel

TIME_BUDGET = 40.0
"""Seconds a call may work. Clients give up after 45 to 60 s, and few of them reset the clock on progress."""


def check_cancelled() -> None:
    """Raise the event loop's own cancellation exception once the client has given up on this call."""
    anyio.from_thread.check_cancelled()


class ProgressReporter:
    """Sends progress to the client of one call, from the worker thread that runs it; every report also
    checks for cancellation. Values that do not grow are dropped, since the protocol asks for growing ones."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._last = -1

    def __call__(self, done: int, total: int, message: str) -> None:
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


def as_text(answer: BaseModel) -> TextContent:
    """An answer as compact JSON, for clients that show the text of a result to the model."""
    return TextContent(type="text", text=answer.model_dump_json())
