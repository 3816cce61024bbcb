"""The same calls over every transport, in both protocol eras."""

import base64

import anyio
import pytest
from mcp import Client, MCPError
from mcp_types import BlobResourceContents

from pathsynth.images import read_image
from pathsynth.records import Classification, GenerationResult
from pathsynth.store import image_id_of
from tests.fakes import smooth_tile
from tests.mcp_fixtures import images, refusal, texts

pytestmark = pytest.mark.anyio


async def test_a_tile_comes_with_progress_and_can_be_read_and_classified(
    any_client: Client, mode: str
) -> None:
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    with anyio.fail_after(30):
        assert any_client.protocol_version == {"auto": "2026-07-28", "legacy": "2025-11-25"}[mode]
        made = await any_client.call_tool(
            "generate_tissue_image", {"tissue": "LYM", "seed": 5}, progress_callback=on_progress
        )
        (tile,) = GenerationResult.model_validate_json(texts(made)[0]).tiles
        (original,) = (await any_client.read_resource(f"pathsynth://images/{tile.image_id}")).contents
        classified = await any_client.call_tool("classify_image", {"image": tile.image_id})

    assert tile.image_id == image_id_of(smooth_tile(5))
    assert min(read_image(base64.b64decode(images(made)[0].data)).shape[:2]) >= 224
    assert isinstance(original, BlobResourceContents)
    assert image_id_of(read_image(base64.b64decode(original.blob))) == tile.image_id
    assert Classification.model_validate(classified.structured_content).tissue == "LYM"
    assert seen == sorted(set(seen))
    assert seen[-1] == 1


async def test_bad_calls_are_refused_in_a_sentence_and_the_next_is_answered(any_client: Client) -> None:
    with anyio.fail_after(30):
        assert "`count`" in refusal(
            await any_client.call_tool("generate_tissue_image", {"tissue": "ADI", "count": 0})
        )
        refusal(await any_client.call_tool("classify_image", {"image": "bm90IGFuIGltYWdl"}))
        with pytest.raises(MCPError):
            await any_client.read_resource("pathsynth://images/0123456789abcdef")
        answered = await any_client.call_tool("evaluate_model", {"what": "generator", "per_class": 1})

    assert not answered.is_error
    assert answered.structured_content is not None


async def test_calls_at_the_same_time_each_get_their_own_answer(any_client: Client) -> None:
    answers: dict[int, str] = {}

    async def call(seed: int) -> None:
        made = await any_client.call_tool("generate_tissue_image", {"tissue": "MUS", "seed": seed})
        answers[seed] = GenerationResult.model_validate_json(texts(made)[0]).tiles[0].image_id

    with anyio.fail_after(30):
        async with anyio.create_task_group() as calls:
            for seed in range(0, 50, 10):
                calls.start_soon(call, seed)

    assert answers == {seed: image_id_of(smooth_tile(seed)) for seed in range(0, 50, 10)}
