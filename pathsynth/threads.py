"""How many threads compute what has to come out the same everywhere."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
OnStep = Callable[[], None]


class _StoppedError(Exception):
    """Another thread failed, or the caller wants no more."""


def available_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Compute inside with one thread of torch, so that a tile is the same on two cores and on eight.

    Sums that several threads share are rounded in another order: of 18 tiles of 224 px made with one thread
    and with two, three were alike. One thread also never waits for another, which the rest of a busy machine
    may have put to sleep.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    makers: Sequence[Callable[[Item, OnStep], Result]], items: Sequence[Item], on_step: OnStep | None = None
) -> list[Result]:
    """What `makers` make of items, in the order of those: each has a thread of its own, with one thread of
    torch, and takes the next item as soon as it is done with one.

    A maker is given what to call before each of its steps. `on_step` is then called here, in the thread of
    the caller, shortly after; when it raises, or a maker does, every maker ends with its step.
    """
    waiting = deque(enumerate(items))
    heard: SimpleQueue[bool] = SimpleQueue()  # a step, or False: a thread has ended
    made: dict[int, Result] = {}
    stopped = threading.Event()

    def before_step() -> None:
        if stopped.is_set():
            raise _StoppedError
        heard.put(True)

    def next_of_waiting() -> tuple[int, Item] | None:
        with suppress(IndexError):
            return waiting.popleft()
        return None

    def work(make: Callable[[Item, OnStep], Result]) -> None:
        try:
            torch.set_num_threads(1)
            while (taken := next_of_waiting()) is not None:
                at, item = taken
                made[at] = make(item, before_step)
        except _StoppedError:
            pass
        except BaseException:
            stopped.set()
            raise
        finally:
            heard.put(False)

    with ThreadPoolExecutor(len(makers)) as pool:
        working = [pool.submit(work, make) for make in makers]
        try:
            ended = 0
            while ended < len(working):
                if not heard.get():
                    ended += 1
                elif on_step is not None:
                    on_step()
        finally:
            stopped.set()
    for each in working:
        each.result()
    return [made[at] for at in range(len(items))]
