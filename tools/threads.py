"""A thread of its own for each call that computes.

OpenMP keeps helper threads for every thread that has computed with torch, and once there are more of them
than cores, they sleep between two operations instead of waiting awake: an attempt at a tile took 1.1 s in the
worker threads of the event loop, and 0.66 s in a thread that ends with its call and takes its helpers with it
(two cores).
"""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import ParamSpec, Protocol, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")


class Home(Protocol):
    """Makes a function, when it is called in the new thread, run in the thread that waits for it."""

    def __call__(self, function: Callable[_P, _R], /) -> Callable[_P, _R]:
        """`function`, as it can be called in the new thread: same result, same exceptions."""


def in_own_thread(work: Callable[[Home], _T]) -> _T:
    """What `work` returns or raises, run in a new thread while this one waits.

    What belongs to this thread, such as asking the event loop whether the call was cancelled, `work` calls
    through the `Home` that it is given.
    """
    visits: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    outcome: Future[_T] = Future()

    def home(function: Callable[_P, _R], /) -> Callable[_P, _R]:
        def call(*arguments: _P.args, **options: _P.kwargs) -> _R:
            answer: Future[_R] = Future()
            visits.put(lambda: _settle(answer, lambda: function(*arguments, **options)))
            return answer.result()

        return call

    def run() -> None:
        _settle(outcome, lambda: work(home))
        visits.put(None)

    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(run), name="compute", daemon=True)
    thread.start()
    while (visit := visits.get()) is not None:
        visit()
    thread.join()
    return outcome.result()


def _settle(future: Future[_R], work: Callable[[], _R]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
        future.set_exception(error)
    else:
        future.set_result(result)
