"""The work queue: who is served when, who is told to come back, and that nobody leaves it blocked."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pathsynth.errors import OutOfTimeError
from tools.queue import Line, QueueFullError, WorkQueue

SECONDS = 10


class GaveUpError(Exception):
    """The client of a call has gone."""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as pool:
        yield pool


class Call:
    """A call that holds its turn until it is told to end."""

    def __init__(self, queue: WorkQueue, line: Line = Line.GENERATION) -> None:
        self._queue, self._line = queue, line
        self.waits, self.moved_up, self.runs = threading.Event(), threading.Event(), threading.Event()
        self.may_end, self.gives_up = threading.Event(), threading.Event()
        self.places: list[int] = []

    def _on_position(self, before: int) -> None:
        self.places.append(before)
        (self.moved_up if self.waits.is_set() else self.waits).set()

    def _check(self) -> None:
        if self.gives_up.is_set():
            raise GaveUpError

    def __call__(self) -> None:
        with self._queue.turn(self._line, on_position=self._on_position, check_cancelled=self._check):
            self.runs.set()
            assert self.may_end.wait(SECONDS)


def started(threads: ThreadPoolExecutor, call: Call, event: threading.Event) -> Future[None]:
    future = threads.submit(call)
    assert event.wait(SECONDS)
    return future


def waiting(
    threads: ThreadPoolExecutor, queue: WorkQueue, number: int
) -> tuple[Call, list[Call], list[Future[None]]]:
    """One running call and `number` waiting ones, in the order of their coming."""
    first, others = Call(queue), [Call(queue) for _ in range(number)]
    futures = [started(threads, first, first.runs)]
    futures += [started(threads, other, other.waits) for other in others]
    return first, others, futures


def test_calls_of_one_line_are_served_one_by_one_in_the_order_of_their_coming(
    threads: ThreadPoolExecutor,
) -> None:
    queue = WorkQueue()
    first, others, futures = waiting(threads, queue, 4)
    assert (queue.running, queue.waiting) == (1, 4)
    for number, (before, after) in enumerate(zip([first, *others], others, strict=False), start=1):
        assert not after.runs.is_set()
        before.may_end.set()
        assert after.runs.wait(SECONDS)
        assert sum(call.runs.is_set() for call in others) == number
    others[-1].may_end.set()
    for future in futures:
        future.result(SECONDS)
    assert (queue.running, queue.waiting) == (0, 0)


def test_a_waiting_call_hears_how_many_come_before_it_whenever_that_changes(
    threads: ThreadPoolExecutor,
) -> None:
    first, others, futures = waiting(threads, WorkQueue(), 3)
    for call in (first, *others):
        call.may_end.set()
    for future in futures:
        future.result(SECONDS)
    assert first.places == []
    assert [call.places[0] for call in others] == [1, 2, 3]
    assert all(call.places == sorted(set(call.places), reverse=True) for call in others)


def test_lines_do_not_wait_for_each_other(threads: ThreadPoolExecutor) -> None:
    queue = WorkQueue()
    calls = [Call(queue, line) for line in Line]
    futures = [started(threads, call, call.runs) for call in calls]
    assert (queue.running, queue.waiting) == (len(Line), 0)
    for call, future in zip(calls, futures, strict=True):
        call.may_end.set()
        future.result(SECONDS)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(threads: ThreadPoolExecutor) -> None:
    queue = WorkQueue(max_waiting=2)
    first, others, futures = waiting(threads, queue, 2)
    with (
        pytest.raises(QueueFullError, match=r"2 calls wait .*again in about \d+ s\.$"),
        queue.turn(Line.GENERATION),
    ):
        pytest.fail("a third call was let in")
    assert (queue.running, queue.waiting) == (1, 2)
    for call in (first, *others):
        call.may_end.set()
    for future in futures:
        future.result(SECONDS)
    with queue.turn(Line.GENERATION):
        assert queue.running == 1


def test_when_to_come_back_follows_how_long_calls_take() -> None:
    now = 0.0
    queue = WorkQueue(max_waiting=0, clock=lambda: now)

    def advice() -> str:
        with pytest.raises(QueueFullError) as caught, queue.turn(Line.GENERATION):
            pytest.fail("a call was let in")
        return str(caught.value)

    assert "in about 10 s" in advice()
    patient = WorkQueue(max_waiting=1, clock=lambda: now)
    for _ in range(20):
        with patient.turn(Line.GENERATION):
            now += 3.0
    queue._lines = patient._lines
    assert "in about 4 s" in advice()  # a little above 3 still, rounded up


def test_a_call_that_gives_up_leaves_the_queue_and_the_next_one_moves_up(threads: ThreadPoolExecutor) -> None:
    queue = WorkQueue()
    first, (second, third), futures = waiting(threads, queue, 2)
    second.gives_up.set()
    with pytest.raises(GaveUpError):
        futures[1].result(SECONDS)
    assert third.moved_up.wait(SECONDS)
    assert (queue.running, queue.waiting) == (1, 1)
    first.may_end.set()
    assert third.runs.wait(SECONDS)
    third.may_end.set()
    futures[2].result(SECONDS)
    assert third.places == [2, 1]


def test_a_call_whose_time_goes_by_while_it_waits_leaves(threads: ThreadPoolExecutor) -> None:
    queue = WorkQueue()
    first, _, futures = waiting(threads, queue, 0)
    with (
        pytest.raises(OutOfTimeError, match="behind 1 call; make the same call again"),
        queue.turn(Line.GENERATION, deadline=0.0),
    ):
        pytest.fail("its turn came too early")
    assert (queue.running, queue.waiting) == (1, 0)
    first.may_end.set()
    futures[0].result(SECONDS)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_work_that_fails_gives_its_turn_back(error: Callable[[], BaseException]) -> None:
    queue = WorkQueue()
    with pytest.raises((ValueError, KeyboardInterrupt)), queue.turn(Line.GENERATION):
        raise error()
    assert (queue.running, queue.waiting) == (0, 0)
    with queue.turn(Line.GENERATION):
        assert queue.running == 1
