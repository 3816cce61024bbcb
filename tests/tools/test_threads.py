"""Calls that compute in a thread of their own."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable

import pytest

from tools.threads import in_own_thread


def test_work_runs_in_a_new_thread_that_has_ended_with_the_call() -> None:
    threads = [in_own_thread(lambda home: threading.current_thread()) for _ in range(2)]
    assert len({*threads, threading.current_thread()}) == 3
    assert not any(thread.is_alive() for thread in threads)


def test_what_comes_home_runs_in_the_thread_that_waits() -> None:
    def where(word: str, *, number: int) -> tuple[str, int, threading.Thread]:
        return word, number, threading.current_thread()

    seen = in_own_thread(lambda home: home(where)("a", number=2))
    assert seen == ("a", 2, threading.current_thread())


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError(), KeyboardInterrupt()])
@pytest.mark.parametrize("at_home", [True, False])
def test_exceptions_pass_through_both_ways(error: BaseException, at_home: bool) -> None:
    seen: list[BaseException] = []

    def fail() -> None:
        raise error

    def work(failing: Callable[[], None]) -> None:
        try:
            failing()
        except BaseException as caught:
            seen.append(caught)
            raise

    with pytest.raises(type(error)) as caught:
        in_own_thread(lambda home: work(home(fail) if at_home else fail))
    assert caught.value is error
    assert seen == [error]


def test_context_variables_are_those_of_the_caller() -> None:
    number = contextvars.ContextVar("number", default=0)
    number.set(7)
    assert in_own_thread(lambda home: number.get()) == 7


def test_a_thousand_visits_take_little_time() -> None:
    started = time.perf_counter()
    assert in_own_thread(lambda home: sum(home(int)("1") for _ in range(1000))) == 1000
    assert time.perf_counter() - started < 2
