"""A tile is the same however many threads torch has."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pathsynth.detailer import Detailer
from pathsynth.generator import Generator
from pathsynth.text import TextEncoder
from pathsynth.threads import on_one_thread
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
