"""`generate_tissue_image`, through a client in both protocol eras."""

import base64
import io
import json
import math
import re
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from mcp import Client
from mcp_types import BlobResourceContents, ImageContent, ResourceLink, TextContent, TextResourceContents
from PIL import Image

from pathsynth.errors import OutOfTimeError, RequestError, WeightsError
from pathsynth.images import encode_png
from pathsynth.records import GenerationResult, TileRecord
from pathsynth.studio import GenerationRequest
from pathsynth.tissues import CODES, by_code
from server.app import PathSynthServer
from tests.fakes import FakeStudio, noisy_tile, smooth_tile
from tests.mcp_fixtures import images, refusal, texts
from tools.generate_tissue_image import answer
from tools.queue import MAX_WAITING

pytestmark = pytest.mark.anyio

TOOL = "generate_tissue_image"
RESULT_BYTES = 300_000
ANSWERED_AGAIN_SECONDS = 0.1
AN_IMAGE = base64.b64encode(encode_png(smooth_tile(3))).decode("ascii")


def picture(block: ImageContent) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(block.data)))


async def test_a_verified_tile_comes_as_json_note_picture_and_link(client: Client) -> None:
    result = await client.call_tool(TOOL, {"tissue": "ADI"})

    assert not result.is_error
    assert result.structured_content is None
    assert [type(block) for block in result.content] == [TextContent, TextContent, ImageContent, ResourceLink]
    answer = GenerationResult.model_validate_json(texts(result)[0])
    assert (answer.tissue, answer.verified, len(answer.tiles)) == ("ADI", True, 1)
    (image,) = images(result)
    assert image.mime_type == "image/png"
    assert (picture(image).format, picture(image).size) == ("PNG", (224, 224))


async def test_the_note_says_that_fine_detail_was_made_up(studio: FakeStudio) -> None:
    made = studio.generate(GenerationRequest.checked(description="fat", tissue="ADI"))
    tiles = [tile.model_copy(update={"detailed": True}) for tile in made.tiles]
    detailed = made.model_copy(update={"tiles": tiles})
    notes = [block.text for block in answer(detailed, studio.store) if isinstance(block, TextContent)]

    assert "made up to fit" in notes[1]
    assert "made up" not in answer(made, studio.store)[1].model_dump_json()


async def test_the_note_says_that_the_picture_is_an_enlargement_and_not_for_diagnosis(client: Client) -> None:
    note = texts(await client.call_tool(TOOL, {"tissue": "ADI"}))[1]

    assert "1 verified synthetic tile of adipose" in note
    assert "Lanczos" in note
    assert "28 px" in note
    assert "not for diagnosis" in note


async def test_the_json_is_compact(client: Client) -> None:
    text = texts(await client.call_tool(TOOL, {"tissue": "ADI"}))[0]

    assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)


async def test_the_link_leads_to_the_stored_original_and_its_record(
    client: Client, studio: FakeStudio
) -> None:
    result = await client.call_tool(TOOL, {"tissue": "ADI"})
    (link,) = [block for block in result.content if isinstance(block, ResourceLink)]
    (image_id,) = studio.store.ids()

    (original,) = (await client.read_resource(link.uri)).contents
    (record,) = (await client.read_resource(f"{link.uri}/record")).contents

    assert isinstance(original, BlobResourceContents)
    file = base64.b64decode(original.blob)
    assert file == studio.store.get(image_id).path.read_bytes()
    assert (link.uri, link.size, link.mime_type) == (f"pathsynth://images/{image_id}", len(file), "image/png")
    assert Image.open(io.BytesIO(file)).size == (28, 28)
    assert isinstance(record, TextResourceContents)
    assert TileRecord.model_validate_json(record.text).image_id == image_id


async def test_the_same_request_gives_the_same_answer(client: Client) -> None:
    request = {"tissue": "LYM", "count": 3, "seed": 7}

    first, second = await client.call_tool(TOOL, request), await client.call_tool(TOOL, request)

    assert first.content == second.content


async def test_few_tiles_come_as_one_picture_each(client: Client) -> None:
    result = await client.call_tool(TOOL, {"tissue": "MUS", "count": 2})

    assert [picture(image).size for image in images(result)] == [(224, 224)] * 2
    assert "contact sheet" not in texts(result)[1]


async def test_nine_tiles_that_compress_badly_share_a_sheet_below_the_size_limit(
    client: Client, studio: FakeStudio
) -> None:
    studio.tile = noisy_tile
    studio.is_verified = lambda attempt: attempt % 11 == 0

    result = await client.call_tool(
        TOOL, {"tissue": "MUS", "count": 9, "max_attempts": 99, "description": "x" * 1000}
    )

    assert len(GenerationResult.model_validate_json(texts(result)[0]).tiles) == 9
    (sheet,) = images(result)
    assert min(picture(sheet).size) >= 224
    assert "one contact sheet" in texts(result)[1]
    assert len(result.model_dump_json(by_alias=True)) < RESULT_BYTES
    assert sum(isinstance(block, ResourceLink) for block in result.content) == 9


async def test_out_of_attempts_with_nothing_verified_shows_no_picture_and_says_so(
    client: Client, studio: FakeStudio
) -> None:
    studio.is_verified = lambda attempt: False

    result = await client.call_tool(TOOL, {"tissue": "STR", "max_attempts": 4})

    assert not result.is_error
    assert [type(block) for block in result.content] == [TextContent, TextContent]
    answer = GenerationResult.model_validate_json(texts(result)[0])
    assert (answer.verified, answer.tiles, len(answer.rejected)) == (False, [], 4)
    assert "No picture" in texts(result)[1]


async def test_out_of_attempts_with_some_verified_shows_these_and_says_how_many_were_asked(
    client: Client, studio: FakeStudio
) -> None:
    studio.is_verified = lambda attempt: attempt == 2

    result = await client.call_tool(TOOL, {"tissue": "STR", "count": 3, "max_attempts": 4})

    assert not result.is_error
    answer = GenerationResult.model_validate_json(texts(result)[0])
    assert (answer.verified, len(answer.tiles), answer.attempts) == (False, 1, 4)
    assert len(images(result)) == 1
    assert "3 were asked for" in texts(result)[1]


async def test_every_attempt_is_reported_as_progress(client: Client, studio: FakeStudio) -> None:
    studio.is_verified = lambda attempt: attempt == 3
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    await client.call_tool(TOOL, {"tissue": "TUM", "max_attempts": 9}, progress_callback=on_progress)

    assert [(progress, total) for progress, total, _ in seen] == [(0, 9), (1, 9), (2, 9), (3, 9)]
    assert seen[1][2] == "Attempt 1: STR 0.95, discarded (0 of 1)"
    assert seen[3][2] == "Attempt 3: TUM 0.95, verified (1 of 1)"


async def test_the_request_reaches_the_library_with_a_time_budget(client: Client, studio: FakeStudio) -> None:
    await client.call_tool(
        TOOL,
        {
            "description": "  crowded glands ",
            "tissue": "TUM",
            "count": 2,
            "seed": 5,
            "size": 28,
            "min_confidence": 0.8,
            "max_attempts": 6,
        },
    )

    (request,) = studio.requests
    assert request.time_budget is not None
    assert 30 < request.time_budget < 40
    assert request.model_dump(exclude={"time_budget"}) == {
        "description": "crowded glands",
        "tissue": "TUM",
        "count": 2,
        "seed": 5,
        "size": 28,
        "min_confidence": 0.8,
        "max_attempts": 6,
    }


async def test_a_tissue_alone_is_described_by_its_domain_prompt(client: Client, studio: FakeStudio) -> None:
    await client.call_tool(TOOL, {"tissue": "norm"})

    assert studio.requests[0].description == by_code("NORM").prompt


async def test_a_description_alone_leaves_the_tissue_to_the_library(
    client: Client, studio: FakeStudio
) -> None:
    await client.call_tool(TOOL, {"description": "fat cells"})

    assert (studio.requests[0].description, studio.requests[0].tissue) == ("fat cells", None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "description"),
        ({"description": ""}, "description"),
        ({"description": " \n\t"}, "description"),
        ({"description": "x" * 10_000}, "description"),
        ({"tissue": "LIVER"}, "TUM"),
        ({"tissue": "x" * 10_000}, "tissue"),
        ({"tissue": "ADI", "count": 0}, "count"),
        ({"tissue": "ADI", "count": 1000}, "count"),
        ({"tissue": "ADI", "count": "many"}, "count"),
        ({"tissue": "ADI", "count": 1.5}, "count"),
        ({"tissue": "ADI", "count": None}, "count"),
        ({"tissue": "ADI", "seed": -1}, "seed"),
        ({"tissue": "ADI", "seed": 2**32}, "seed"),
        ({"tissue": "ADI", "seed": 10**300}, "seed"),
        ({"tissue": "ADI", "size": 512}, "size"),
        ({"tissue": "ADI", "min_confidence": 1.01}, "min_confidence"),
        ({"tissue": "ADI", "max_attempts": 0}, "max_attempts"),
        ({"tissue": "ADI", "max_attempts": 10**6}, "max_attempts"),
        ({"tissue": ["ADI"]}, "tissue"),
        ({"description": {"a": 1}}, "description"),
    ],
)
async def test_a_bad_argument_is_refused_in_one_sentence_that_names_it(
    client: Client, studio: FakeStudio, arguments: dict[str, Any], named: str
) -> None:
    sentence = refusal(await client.call_tool(TOOL, arguments))

    assert named in sentence
    assert studio.requests == []


async def test_several_bad_arguments_are_all_named(client: Client) -> None:
    sentence = refusal(await client.call_tool(TOOL, {"tissue": "ADI", "count": 0, "seed": -1}))

    assert "`count`" in sentence
    assert "`seed`" in sentence


async def test_an_unknown_tissue_is_answered_with_all_the_codes(client: Client) -> None:
    sentence = refusal(await client.call_tool(TOOL, {"tissue": "LIVER"}))

    assert [code for code in CODES if code not in sentence] == []


async def test_an_ambiguous_description_is_answered_with_the_librarys_question(
    client: Client, studio: FakeStudio
) -> None:
    studio.error = RequestError("That could be MUS or STR; choose one of them as tissue.")

    assert refusal(await client.call_tool(TOOL, {"description": "pink fibres"})) == str(studio.error)


async def test_a_library_error_keeps_its_sentence_but_not_its_folders(
    client: Client, studio: FakeStudio
) -> None:
    studio.error = WeightsError("/opt/venv/lib/pathsynth/validator.safetensors is damaged; install it again.")

    sentence = refusal(await client.call_tool(TOOL, {"tissue": "ADI"}))

    assert sentence == "validator.safetensors is damaged; install it again."


async def test_a_crash_tells_the_client_nothing_of_its_inside(client: Client, studio: FakeStudio) -> None:
    studio.error = ValueError("secret in /etc/secret")

    sentence = refusal(await client.call_tool(TOOL, {"tissue": "ADI"}))

    assert "secret" not in sentence
    assert TOOL in sentence


async def test_a_cancelled_call_stops_between_two_steps_and_the_next_one_runs(
    client: Client, studio: FakeStudio
) -> None:
    studio.pauses_before_attempt = 1
    first_attempt = anyio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        if progress == 1:
            first_attempt.set()

    async def call() -> None:
        await client.call_tool(TOOL, {"tissue": "ADI", "count": 2}, progress_callback=on_progress)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as calls:
            calls.start_soon(call)
            await first_attempt.wait()
            assert await anyio.to_thread.run_sync(studio.paused.wait, 5)
            assert not studio.stopped.is_set()
            calls.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(studio.stopped.wait, 5)

        studio.pauses_before_attempt = None
        result = await client.call_tool(TOOL, {"tissue": "ADI"})
    assert not result.is_error


async def test_a_call_that_runs_into_the_clients_own_time_limit_stops_too(
    client: Client, studio: FakeStudio
) -> None:
    studio.pauses_before_attempt = 0

    with anyio.fail_after(10):
        with pytest.raises(Exception, match=r"(?i)timed? ?out"):
            await client.call_tool(TOOL, {"tissue": "ADI"}, read_timeout_seconds=0.2)
        assert await anyio.to_thread.run_sync(studio.stopped.wait, 5)


async def test_a_repeated_call_is_answered_from_the_store_byte_for_byte_and_at_once(
    client: Client, studio: FakeStudio
) -> None:
    studio.is_verified = lambda attempt: attempt % 3 == 0
    request = {"tissue": "LYM", "count": 9, "seed": 7, "include_rejected": True}
    first = await client.call_tool(TOOL, request)
    studio.error = WeightsError("No model may be asked.")
    best = math.inf
    for _ in range(3):
        started = time.process_time()  # of this process alone, whatever else runs on the machine
        again = await client.call_tool(TOOL, request)
        best = min(best, time.process_time() - started)
        assert again.model_dump_json() == first.model_dump_json()
    assert best < ANSWERED_AGAIN_SECONDS


def out_of_time_at(studio: FakeStudio, step: int) -> None:
    taken = iter(range(10**6))

    def on_step() -> None:
        if next(taken) == step:
            raise OutOfTimeError("The time is spent.")

    studio.on_step = on_step


async def test_out_of_time_returns_what_is_verified_and_the_way_to_go_on(
    client: Client, studio: FakeStudio
) -> None:
    out_of_time_at(studio, 4)
    result = await client.call_tool(TOOL, {"tissue": "STR", "count": 3, "seed": 5})
    part = GenerationResult.model_validate_json(texts(result)[0])
    assert not result.is_error
    assert (len(part.tiles), part.verified, part.can_continue) == (1, False, True)
    assert f'continue_request="{part.request_id}"' in texts(result)[1]
    assert len(images(result)) == 1

    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    studio.on_step = lambda: None
    studio.proposed.clear()
    done = await client.call_tool(
        TOOL, {"continue_request": f" {part.request_id} ", "count": 9}, progress_callback=on_progress
    )
    whole = GenerationResult.model_validate_json(texts(done)[0])
    assert (whole.request_id, whole.verified, whole.can_continue) == (part.request_id, True, False)
    assert [tile.seed for tile in whole.tiles] == [5, 6, 7]
    assert whole.tiles[0] == part.tiles[0]
    assert studio.proposed == [6, 7]
    assert seen == [0, 2, 3]


async def test_out_of_time_with_nothing_verified_says_how_to_go_on_too(
    client: Client, studio: FakeStudio
) -> None:
    out_of_time_at(studio, 0)
    result = await client.call_tool(TOOL, {"tissue": "STR"})
    assert not result.is_error
    assert "continue_request=" in texts(result)[1]
    assert images(result) == []


async def test_a_request_out_of_attempts_goes_on_with_more_of_them(
    client: Client, studio: FakeStudio
) -> None:
    studio.is_verified = lambda attempt: attempt == 5
    few = GenerationResult.model_validate_json(
        texts(await client.call_tool(TOOL, {"tissue": "STR", "max_attempts": 4}))[0]
    )
    assert (few.attempts, few.can_continue) == (4, False)
    more = {"continue_request": few.request_id, "max_attempts": 9}
    result = await client.call_tool(TOOL, more)
    whole = GenerationResult.model_validate_json(texts(result)[0])
    assert (whole.attempts, whole.verified, whole.request_id) == (5, True, few.request_id)
    assert len(images(result)) == 1


async def test_an_unknown_request_to_go_on_with_is_refused_in_one_sentence(client: Client) -> None:
    for name in ("0123456789ab", "nonsense", "../../x", "x" * 41):
        refusal(await client.call_tool(TOOL, {"continue_request": name}))


async def test_rejected_tiles_are_shown_apart_and_called_not_verified(
    client: Client, studio: FakeStudio
) -> None:
    studio.is_verified = lambda attempt: attempt == 3
    result = await client.call_tool(TOOL, {"tissue": "TUM", "include_rejected": True})
    tile, rejected = images(result)
    assert (tile.mime_type, rejected.mime_type) == ("image/png", "image/jpeg")
    assert min(picture(rejected).size) >= 224
    assert "red frames" in texts(result)[1]
    assert "2 rejected tiles, NOT verified as colorectal adenocarcinoma epithelium" in texts(result)[1]
    assert len(studio.store.ids()) == 1


async def test_rejected_tiles_are_shown_also_when_none_was_verified(
    client: Client, studio: FakeStudio
) -> None:
    studio.is_verified = lambda attempt: False
    result = await client.call_tool(TOOL, {"tissue": "TUM", "max_attempts": 30, "include_rejected": True})
    (rejected,) = images(result)
    assert rejected.mime_type == "image/jpeg"
    assert "the first 24 of 30 rejected tiles" in texts(result)[1]
    assert studio.store.ids() == ()


@pytest.mark.parametrize(("edge", "character"), [(28, "\u0001"), (224, "\U0001f52c")])
async def test_the_worst_tiles_with_the_worst_words_and_rejected_ones_stay_below_the_size_limit(
    client: Client, studio: FakeStudio, edge: int, character: str
) -> None:
    studio.tile = lambda seed: noisy_tile(seed, edge)
    studio.is_verified = lambda attempt: attempt % 11 == 0
    request = {"tissue": "MUS", "count": 9, "max_attempts": 99, "include_rejected": True}
    result = await client.call_tool(TOOL, request | {"description": f"a{character * 998}z"})
    assert not result.is_error, texts(result)
    assert len(images(result)) == 2
    assert len(result.model_dump_json(by_alias=True).encode()) <= RESULT_BYTES


async def test_calls_wait_for_each_other_and_hear_of_their_place(
    client: Client, studio: FakeStudio, server: PathSynthServer
) -> None:
    gate = threading.Event()
    studio.on_step = lambda: assert_in_time(gate)
    waits = {number: anyio.Event() for number in range(3)}
    heard: dict[int, list[str | None]] = {number: [] for number in range(3)}

    async def call(number: int) -> None:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            heard[number].append(message)
            waits[number].set()

        await client.call_tool(TOOL, {"tissue": "ADI", "seed": number}, progress_callback=on_progress)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as calls:
            for number in range(3):
                calls.start_soon(call, number)
                await waits[number].wait()
            assert (server.queue.running, server.queue.waiting) == (1, 2)
            classified = await client.call_tool("classify_image", {"image": AN_IMAGE})
            assert not classified.is_error  # another model: it need not wait
            gate.set()
    assert [request.seed for request in studio.requests] == [0, 1, 2]
    assert heard[0][0] == "Getting the models ready"
    assert heard[1][0] == "Waiting in the queue: 1 call before this one"
    assert heard[2][0] == "Waiting in the queue: 2 calls before this one"
    assert (server.queue.running, server.queue.waiting) == (0, 0)


def assert_in_time(event: threading.Event) -> None:
    assert event.wait(10)


async def test_a_full_queue_answers_at_once_when_to_come_back(
    client: Client, studio: FakeStudio, server: PathSynthServer
) -> None:
    gate = threading.Event()
    studio.on_step = lambda: assert_in_time(gate)
    begun = [anyio.Event() for _ in range(1 + MAX_WAITING)]

    async def call(number: int) -> None:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            begun[number].set()

        result = await client.call_tool(
            TOOL, {"tissue": "ADI", "seed": number}, progress_callback=on_progress
        )
        assert not result.is_error

    with anyio.fail_after(20):
        async with anyio.create_task_group() as calls:
            for number, event in enumerate(begun):
                calls.start_soon(call, number)
                await event.wait()
            sentence = refusal(await client.call_tool(TOOL, {"tissue": "ADI", "seed": 99}))
            assert re.search(r"8 calls wait .* again in about \d+ s", sentence)
            assert server.queue.waiting == MAX_WAITING
            gate.set()


async def test_a_call_cancelled_while_it_waits_leaves_the_queue(
    client: Client, studio: FakeStudio, server: PathSynthServer
) -> None:
    gate = threading.Event()
    studio.on_step = lambda: assert_in_time(gate)
    begun = [anyio.Event(), anyio.Event()]

    async def call(number: int, scope: anyio.CancelScope) -> None:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            begun[number].set()

        with scope:
            await client.call_tool(TOOL, {"tissue": "ADI", "seed": number}, progress_callback=on_progress)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as calls:
            scopes = [anyio.CancelScope(), anyio.CancelScope()]
            for number, scope in enumerate(scopes):
                calls.start_soon(call, number, scope)
                await begun[number].wait()
            assert server.queue.waiting == 1
            scopes[1].cancel()
            while server.queue.waiting:
                await anyio.lowlevel.checkpoint()
            assert server.queue.running == 1
            gate.set()
    assert [request.seed for request in studio.requests] == [0]


async def test_a_call_whose_time_goes_by_in_the_queue_says_so(
    client: Client, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun = threading.Event(), anyio.Event()
    studio.on_step = lambda: assert_in_time(gate)

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        begun.set()

    async def call() -> None:
        await client.call_tool(TOOL, {"tissue": "ADI"}, progress_callback=on_progress)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as calls:
            calls.start_soon(call)
            await begun.wait()
            monkeypatch.setattr("tools.calls.TIME_BUDGET", 2.1)
            sentence = refusal(await client.call_tool(TOOL, {"tissue": "ADI", "seed": 1}))
            assert "went by in the queue, behind 1 call; make the same call again." in sentence
            gate.set()
