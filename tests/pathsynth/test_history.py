"""Requests that were made before: answered from the store, gone on with, made again where a tile is gone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pathsynth.errors import OutOfTimeError, RequestError
from pathsynth.records import MAX_SEED, GenerationResult
from pathsynth.studio import GenerationRequest
from tests.fakes import FakeStudio, smooth_tile

WISHES: dict[str, Any] = {"description": "crowded glands", "tissue": "TUM", "count": 3, "seed": 7}
STEPS = 3


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest.checked(**(WISHES | fields))


def opened(home: Path, is_verified: Callable[[int], bool] = lambda attempt: attempt % 3 == 0) -> FakeStudio:
    """A studio as after a restart, which verifies every third attempt."""
    studio = FakeStudio(home)
    studio.is_verified = is_verified
    return studio


def facts(result: GenerationResult) -> dict[str, Any]:
    """Everything of a result but how long it took."""
    return result.model_dump(exclude={"seconds"})


def out_of_time_at(studio: FakeStudio, step: int) -> None:
    """Let the time be spent at one denoising step, counted from 0."""
    taken = iter(range(10**6))

    def on_step() -> None:
        if next(taken) == step:
            raise OutOfTimeError("The time is spent.")

    studio.on_step = on_step


def test_a_repeated_request_is_answered_as_it_was_without_any_model(tmp_path: Path) -> None:
    first = opened(tmp_path).generate(request())
    again = opened(tmp_path)
    started = time.process_time()
    assert again.generate(request()).model_dump_json() == first.model_dump_json()
    assert time.process_time() - started < 0.1
    assert again.proposed == []
    assert (first.verified, first.can_continue) == (True, False)


def test_a_request_that_ran_out_of_attempts_is_not_made_again_either(tmp_path: Path) -> None:
    first = opened(tmp_path).generate(request(max_attempts=4))
    again = opened(tmp_path)
    assert again.generate(request(max_attempts=4)) == first
    assert again.proposed == []
    assert (first.verified, first.can_continue) == (False, False)


@pytest.mark.parametrize(
    "other",
    [
        {"description": "other glands"},
        {"tissue": "NORM"},
        {"tissue": None},
        {"count": 2},
        {"seed": 8},
        {"size": 28},
        {"min_confidence": 0.8},
    ],
)
def test_another_wish_is_another_request(tmp_path: Path, other: dict[str, Any]) -> None:
    studio = opened(tmp_path)
    assert studio.request_id(request()) != studio.request_id(request(**other))
    studio.generate(request())
    studio.proposed.clear()
    studio.generate(request(**other))
    assert studio.proposed != []


def test_the_time_budget_and_the_spelling_of_the_code_are_no_wishes(tmp_path: Path) -> None:
    studio = opened(tmp_path)
    assert studio.request_id(request()) == studio.request_id(request(time_budget=3.0, tissue=" tum"))


def test_more_attempts_go_on_where_fewer_ended(tmp_path: Path) -> None:
    whole = opened(tmp_path / "whole").generate(request())
    few = opened(tmp_path).generate(request(max_attempts=4))
    assert (few.attempts, len(few.tiles), few.can_continue) == (4, 1, False)
    again = opened(tmp_path)
    wishes = again.remembered_request(str(few.request_id), max_attempts=30)
    assert facts(again.generate(wishes)) == facts(whole)
    assert again.proposed == [7 + attempt for attempt in range(4, 9)]
    assert opened(tmp_path).remembered_request(str(few.request_id), max_attempts=5).max_attempts == 30


@pytest.mark.parametrize("attempts", range(1, 9))
def test_fewer_attempts_are_answered_from_more_as_if_those_had_not_been_made(
    tmp_path: Path, attempts: int
) -> None:
    few = opened(tmp_path / "few").generate(request(max_attempts=attempts))
    studio = opened(tmp_path / "many")
    whole = studio.generate(request())
    studio.proposed.clear()
    assert facts(studio.generate(request(max_attempts=attempts))) == facts(few)
    assert studio.proposed == []
    assert studio.generate(request()) == whole


def test_other_weights_do_not_answer_for_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(tmp_path).generate(request())
    monkeypatch.setattr(FakeStudio, "model", "0ther")
    other = opened(tmp_path)
    assert other.recall(request()) is None
    with pytest.raises(RequestError, match="other weights"):
        other.remembered_request(str(first.request_id))


def test_whenever_the_time_runs_out_going_on_gives_what_an_uninterrupted_call_gives(tmp_path: Path) -> None:
    whole = opened(tmp_path / "whole").generate(request())
    assert whole.attempts == 9
    for step in range(whole.attempts * STEPS):
        home = tmp_path / str(step)
        studio = opened(home)
        out_of_time_at(studio, step)
        part = studio.generate(request())
        assert (part.attempts, part.can_continue) == (step // STEPS, True)
        assert "the same request goes on from there" in part.message

        restarted = opened(home)
        asked = restarted.remembered_request(str(part.request_id))
        assert facts(restarted.generate(asked)) == facts(whole)
        assert restarted.proposed == [7 + attempt for attempt in range(part.attempts, 9)]


def test_a_request_cut_short_many_times_comes_to_the_same_end(tmp_path: Path) -> None:
    whole = opened(tmp_path / "whole").generate(request())
    proposed: list[int] = []
    result = None
    while result is None or result.can_continue:
        studio = opened(tmp_path / "parts")
        out_of_time_at(studio, STEPS + 1)  # in the middle of the second attempt
        result = studio.generate(request())
        proposed += studio.proposed
    assert facts(result) == facts(whole)
    assert proposed == list(range(7, 16))


def test_seeds_that_wrap_around_go_on_rightly(tmp_path: Path) -> None:
    wishes = request(seed=MAX_SEED - 1)
    whole = opened(tmp_path / "whole").generate(wishes)
    studio = opened(tmp_path / "parts")
    out_of_time_at(studio, 4 * STEPS)
    studio.generate(wishes)
    assert facts(opened(tmp_path / "parts").generate(wishes)) == facts(whole)
    assert [tile.seed for tile in whole.tiles] == [0, 3, 6]


def test_a_tile_deleted_since_is_made_again_and_none_before_it(tmp_path: Path) -> None:
    first = opened(tmp_path).generate(request())
    store = opened(tmp_path).store
    store.get(first.tiles[1].image_id).path.unlink()

    again = opened(tmp_path)
    assert facts(again.generate(request())) == facts(first)
    assert again.proposed[0] == first.tiles[1].seed
    assert again.store.ids() == tuple(sorted(tile.image_id for tile in first.tiles))


def test_a_damaged_tile_is_made_again(tmp_path: Path) -> None:
    first = opened(tmp_path).generate(request())
    opened(tmp_path).store.get(first.tiles[0].image_id).path.write_bytes(b"no image")
    assert facts(opened(tmp_path).generate(request())) == facts(first)


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b"[1]"])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, content: bytes) -> None:
    first = opened(tmp_path).generate(request())
    (path,) = (tmp_path / "requests").iterdir()
    path.write_bytes(content)
    again = opened(tmp_path)
    assert facts(again.generate(request())) == facts(first)
    assert len(again.proposed) == first.attempts


def test_an_unknown_request_is_said_shortly(tmp_path: Path) -> None:
    for name in ("0123456789ab", "x" * 500, "../records/x"):
        with pytest.raises(RequestError, match="is remembered") as caught:
            opened(tmp_path).remembered_request(name)
        assert len(str(caught.value)) < 200


def test_rejected_tiles_are_kept_apart_from_the_verified_ones(tmp_path: Path) -> None:
    studio = opened(tmp_path)
    result = studio.generate(request())
    rejected = studio.rejected_tiles(result)
    assert [attempt for attempt, _ in rejected] == result.rejected
    assert all((tile == smooth_tile(attempt.seed)).all() for attempt, tile in rejected)
    assert len(studio.store.ids()) == 3


def test_nothing_is_written_for_a_request_that_cannot_begin(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        opened(tmp_path / "home").generate(request(tissue="LIVER"))
    assert not (tmp_path / "home").exists()
