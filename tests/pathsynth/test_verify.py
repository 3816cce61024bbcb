"""The loop, with tiles and a classifier whose answers are given."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from pathsynth.records import MAX_SEED
from pathsynth.tissues import CODES, TISSUES, Tissue, by_code
from pathsynth.verify import Attempt, LoopRequest, Prediction, verified_tiles

TUM = by_code("TUM")


def tile_of(seed: int) -> npt.NDArray[np.uint8]:
    return np.full((28, 28, 3), seed % 251, dtype=np.uint8)


def propose(seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
    return np.stack([tile_of(seed) for seed in seeds])


class Classifier:
    """Answers in turn; the last answer goes on."""

    def __init__(self, *answers: tuple[str, float, float]) -> None:
        self.answers = answers
        self.calls = 0

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> list[Prediction]:
        result = []
        for _ in tiles:
            code, confidence, ood = self.answers[min(self.calls, len(self.answers) - 1)]
            self.calls += 1
            result.append(Prediction(code, confidence, dict.fromkeys(CODES, 0.0) | {code: confidence}, ood))
        return result


RIGHT = ("TUM", 0.95, 0.5)


def request(
    count: int = 1, max_attempts: int = 10, seed: int = 0, budget: float | None = None
) -> LoopRequest:
    return LoopRequest(TUM, count, seed, 0.9, max_attempts, budget)


def run(asked: LoopRequest, *answers: tuple[str, float, float]) -> list[Attempt]:
    return list(verified_tiles(asked, propose, Classifier(*answers)))


def test_it_ends_when_enough_are_kept() -> None:
    attempts = run(request(count=3), RIGHT)
    assert [attempt.seed for attempt in attempts] == [0, 1, 2]
    assert all(attempt.verified for attempt in attempts)
    assert np.array_equal(attempts[2].tile, tile_of(2))


def test_it_goes_on_with_the_next_seed_until_enough_are_kept() -> None:
    attempts = run(request(count=2, seed=5), RIGHT, ("STR", 0.99, 0.5), ("MUS", 0.99, 0.5), RIGHT)
    assert [(attempt.seed, attempt.verified) for attempt in attempts] == [
        (5, True),
        (6, False),
        (7, False),
        (8, True),
    ]


def test_it_gives_up_when_attempts_are_spent() -> None:
    attempts = run(request(count=2, max_attempts=4), ("STR", 0.99, 0.5))
    assert [attempt.seed for attempt in attempts] == [0, 1, 2, 3]
    assert not any(attempt.verified for attempt in attempts)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (("STR", 0.99, 0.5), "other tissue"),
        (("TUM", 0.8999, 0.5), "low confidence"),
        (("TUM", 0.99, 1.0), "out of distribution"),
        (("TUM", 0.9, 0.9999), None),
    ],
)
def test_a_tile_is_kept_only_when_everything_holds(
    answer: tuple[str, float, float], reason: str | None
) -> None:
    (attempt,) = run(request(max_attempts=1), answer)
    assert attempt.rejected_for == reason
    assert attempt.verified == (reason is None)


def test_a_near_copy_of_a_training_tile_is_not_kept() -> None:
    asked: list[int] = []

    def is_near_copy(tile: npt.NDArray[np.uint8], tissue: Tissue) -> bool:
        assert tissue == TUM
        asked.append(int(tile[0, 0, 0]))
        return asked[-1] == 1

    classifier = Classifier(("STR", 0.99, 0.5), RIGHT)
    attempts = list(verified_tiles(request(), propose, classifier, is_near_copy))
    assert [attempt.rejected_for for attempt in attempts] == ["other tissue", "near copy", None]
    assert asked == [1, 2]  # one of another tissue is discarded without being looked up


def test_no_time_at_all_makes_no_attempt() -> None:
    assert run(request(budget=0.0), RIGHT) == []
    assert run(request(budget=-1.0), RIGHT) == []


def test_it_gives_up_when_the_time_is_spent() -> None:
    time = 100.0

    def slow(seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
        nonlocal time
        time += 3 * len(seeds)
        return propose(seeds)

    attempts = list(
        verified_tiles(
            request(count=9, max_attempts=100, budget=10.0), slow, Classifier(RIGHT), clock=lambda: time
        )
    )
    assert len(attempts) == 4  # the fourth started after 9 s
    assert time == 112  # and no further one was under way


def test_several_are_made_together_but_none_in_vain() -> None:
    asked: list[list[int]] = []

    def watched(seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
        asked.append(list(seeds))
        return propose(seeds)

    answers = (RIGHT, ("STR", 0.99, 0.5), RIGHT)
    loop = request(count=4, max_attempts=6, seed=MAX_SEED - 1)
    together = list(verified_tiles(loop, watched, Classifier(*answers), at_once=3))
    assert asked == [[MAX_SEED - 1, MAX_SEED, 0], [1, 2]]
    alone = list(verified_tiles(loop, propose, Classifier(*answers)))
    assert [(a.seed, a.rejected_for, a.tile.tobytes()) for a in together] == [
        (a.seed, a.rejected_for, a.tile.tobytes()) for a in alone
    ]
    asked.clear()
    never = verified_tiles(loop, watched, Classifier(("STR", 0.99, 0.5)), at_once=4)
    assert len(list(never)) == 6
    assert [len(seeds) for seeds in asked] == [4, 2]


def test_each_attempt_is_known_before_the_next_is_made() -> None:
    made: list[int] = []

    def watched(seeds: Sequence[int]) -> npt.NDArray[np.uint8]:
        made.extend(seeds)
        return propose(seeds)

    for number, attempt in enumerate(verified_tiles(request(count=9), watched, Classifier(RIGHT)), start=1):
        assert made == list(range(number))
        assert attempt.seed == number - 1


def test_seeds_go_round_at_their_largest() -> None:
    attempts = run(request(count=3, seed=MAX_SEED - 1), RIGHT)
    assert [attempt.seed for attempt in attempts] == [MAX_SEED - 1, MAX_SEED, 0]


def test_the_same_request_gives_the_same_attempts() -> None:
    answers = (RIGHT, ("STR", 0.99, 0.5), RIGHT)
    first, second = (run(request(count=2, seed=3), *answers) for _ in range(2))
    assert [(a.seed, a.prediction, a.rejected_for) for a in first] == [
        (a.seed, a.prediction, a.rejected_for) for a in second
    ]


@pytest.mark.parametrize("tissue", TISSUES, ids=CODES)
def test_only_the_tissue_asked_for_is_verified(tissue: Tissue) -> None:
    asked = LoopRequest(tissue, 1, 0, 0.9, 9)
    answers = [(code, 0.99, 0.5) for code in CODES]
    attempts = list(verified_tiles(asked, propose, Classifier(*answers)))
    assert len(attempts) == tissue.index + 1
    assert [attempt.verified for attempt in attempts] == [False] * tissue.index + [True]
