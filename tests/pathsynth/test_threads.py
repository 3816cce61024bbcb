"""A tile is the same however many threads torch has."""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

import numpy as np
import pytest
import torch

from pathsynth.detailer import Detailer
from pathsynth.generator import Generator
from pathsynth.text import TextEncoder
from pathsynth.threads import on_one_thread, side_by_side
from pathsynth.tissues import by_code
from pathsynth.weights import Weights


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_there_is_one_thread_inside_and_as_many_as_before_after_it() -> None:
    torch.set_num_threads(3)
    with on_one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="inside"), on_one_thread():
        raise ValueError("inside")
    assert torch.get_num_threads() == 3


def test_text_layout_and_detail_are_the_same_with_any_number_of_threads(encoder: TextEncoder) -> None:
    weights = Weights()
    generator, detailer = Generator.load(weights), Detailer.load(weights)
    made = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        context = generator.context_of(by_code("TUM"), "tumour, dark stain", lambda: encoder, 5)
        (layout,) = generator.propose(context, [5])
        tile, _ = detailer.render(layout, context, 5)
        assert torch.get_num_threads() == threads
        made.append((context.states.numpy(), layout, tile))
    for other in made[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(made[0], other, strict=True))


def test_makers_share_items_and_their_steps_are_heard_by_the_caller() -> None:
    both, heard = threading.Barrier(2, timeout=30), []

    def make(item: int, before_step: Callable[[], None]) -> tuple[int, int]:
        if item < 2:
            both.wait()  # each maker has one of the first two, at the same time
        before_step()
        assert torch.get_num_threads() == 1
        return item * item, threading.get_ident()

    made = side_by_side([make, make], range(7), lambda: heard.append(threading.get_ident()))
    assert [square for square, _ in made] == [0, 1, 4, 9, 16, 25, 36]
    threads = {thread for _, thread in made}
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    assert heard == [threading.get_ident()] * 7


def test_an_error_of_a_maker_or_of_the_caller_ends_every_maker() -> None:
    failed, going_on = threading.Event(), threading.Event()

    def fail(item: int, before_step: Callable[[], None]) -> int:
        assert going_on.wait(30)
        failed.set()
        raise ValueError(f"of {item}")

    def go_on(item: int, before_step: Callable[[], None]) -> int:
        while True:
            going_on.set()
            before_step()

    with pytest.raises(ValueError, match="of "):
        side_by_side([fail, go_on], [0, 1])

    def look_into_nothing(item: int, before_step: Callable[[], None]) -> int:
        return SimpleQueue[int]().get_nowait()

    with pytest.raises(Empty):
        side_by_side([look_into_nothing, look_into_nothing], [0, 1, 2])
    assert failed.is_set()

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        side_by_side([go_on, go_on], [0, 1], stop)
