"""The work queue of a server: who may use a model now, who waits, and who is told to come back.

A line for each kind of work, so that a short classification does not wait behind a long generation: one call
at a time generates tiles (to show them or to measure the generator), one classifies an image, one measures
the validator. Calls are served in the order in which they came.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from pathsynth.errors import OutOfTimeError, PathSynthError
from pathsynth.progress import CheckCancelled

MAX_WAITING = 8
"""Calls that may wait in one line."""

_LOOKS_UP = 0.05
"""Seconds between two looks whether the client of a waiting call has given up."""

_NEWEST_COUNTS = 0.3
"""Share of the newest call in the moving average of durations."""


class Line(StrEnum):
    """Kinds of work; one call of each runs at a time."""

    GENERATION = "generation"
    CLASSIFICATION = "classification"
    EVALUATION = "evaluation"


class QueueFullError(PathSynthError):
    """Nobody may wait any more; the message says when to come back."""


@dataclass
class _State:
    """Calls of one line as tokens, and how long they take on average, in seconds: at first a guess."""

    seconds: float
    running: object | None = None
    waiting: deque[object] = field(default_factory=deque)


class WorkQueue:
    """Waiting lines for the worker threads of one server, with at most `max_waiting` calls waiting in
    each."""

    def __init__(self, max_waiting: int = MAX_WAITING, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_waiting, self._clock = max_waiting, clock
        self._changed = threading.Condition()
        self._lines = {
            Line.GENERATION: _State(10.0),
            Line.CLASSIFICATION: _State(1.0),
            Line.EVALUATION: _State(30.0),
        }

    @property
    def running(self) -> int:
        """Calls that use a model now."""
        with self._changed:
            return sum(state.running is not None for state in self._lines.values())

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        with self._changed:
            return sum(len(state.waiting) for state in self._lines.values())

    @contextmanager
    def turn(
        self,
        line: Line,
        *,
        deadline: float = math.inf,
        on_position: Callable[[int], None] | None = None,
        check_cancelled: CheckCancelled | None = None,
    ) -> Iterator[None]:
        """Wait for a turn, and have it for as long as the context lasts. It is given back however that ends.

        Args:
            deadline: time of `clock` until which to wait at most.
            on_position: hears, at first and whenever it changes, how many calls of the line come before this
            one;
                not called when none does. May raise to leave.
            check_cancelled: called often while waiting; may raise to leave.

        Raises:
            QueueFullError: at once, when `max_waiting` calls wait already.
            OutOfTimeError: the turn did not come by `deadline`.
        """
        state, me = self._lines[line], object()
        with self._changed:
            if len(state.waiting) >= self._max_waiting:
                raise QueueFullError(self._come_back(line, state))
            state.waiting.append(me)
        try:
            self._wait(state, me, deadline, on_position, check_cancelled)
            started = self._clock()
            try:
                yield
            finally:
                taken = self._clock() - started
                state.seconds += _NEWEST_COUNTS * (taken - state.seconds)
        finally:
            with self._changed:
                if state.running is me:
                    state.running = None
                else:
                    state.waiting.remove(me)
                self._changed.notify_all()

    def _wait(
        self,
        state: _State,
        me: object,
        deadline: float,
        on_position: Callable[[int], None] | None,
        check_cancelled: CheckCancelled | None,
    ) -> None:
        """Return as the running call of a line. What the callbacks do is done outside the lock."""
        told: int | None = None
        while True:
            with self._changed:
                if state.running is None and state.waiting[0] is me:
                    state.running = state.waiting.popleft()
                    return
                before = state.waiting.index(me) + (state.running is not None)
                if before == told:
                    self._changed.wait(_LOOKS_UP)
            if check_cancelled is not None:
                check_cancelled()
            if self._clock() >= deadline:
                raise OutOfTimeError(
                    f"The time of this call went by in the queue, behind {_calls(before)}; "
                    "make the same call again."
                )
            if before != told and on_position is not None:
                on_position(before)
            told = before

    def _come_back(self, line: Line, state: _State) -> str:
        seconds = max(1, math.ceil(state.seconds))
        return (
            f"The server is busy: {_calls(len(state.waiting))} wait for {line} already; "
            f"make the same call again in about {seconds} s."
        )


def _calls(number: int) -> str:
    return "1 call" if number == 1 else f"{number} calls"
