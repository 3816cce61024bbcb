"""`view_image`, through a client in both protocol eras."""

import base64
import io
from typing import Any

import pytest
from mcp import Client
from mcp_types import ImageContent, ResourceLink, TextContent
from PIL import Image

from pathsynth.studio import GenerationRequest
from tests.fakes import FakeStudio, noisy_tile, smooth_tile
from tests.mcp_fixtures import images, refusal, texts
from tools.view_image import ViewedImages

pytestmark = pytest.mark.anyio

TOOL = "view_image"
RESULT_BYTES = 300_000


def stored(studio: FakeStudio, count: int) -> list[str]:
    """The ids of new tiles in the store."""
    request = GenerationRequest.checked(description="glands", tissue="TUM", count=count)
    return [tile.image_id for tile in studio.generate(request).tiles]


def size_of(block: ImageContent) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(block.data))).size


@pytest.mark.parametrize("width", [28, 100, 224, 1024])
async def test_a_stored_tile_is_shown_at_the_width_that_is_asked_for(
    client: Client, studio: FakeStudio, width: int
) -> None:
    (image_id,) = stored(studio, 1)
    result = await client.call_tool(TOOL, {"image_ids": [image_id], "width": width})

    assert not result.is_error, texts(result)
    assert result.structured_content is None
    assert [type(block) for block in result.content] == [TextContent, TextContent, ImageContent, ResourceLink]
    assert size_of(images(result)[0]) == (width, width)
    viewed = ViewedImages.model_validate_json(texts(result)[0])
    assert viewed.tiles == [studio.store.get(image_id).record]
    assert "not for diagnosis" in texts(result)[1]


async def test_several_tiles_share_one_numbered_sheet_with_a_link_to_each(
    client: Client, studio: FakeStudio
) -> None:
    ids = stored(studio, 9)[::-1]
    result = await client.call_tool(TOOL, {"image_ids": ids, "width": 700})

    (sheet,) = images(result)
    assert 680 < size_of(sheet)[0] <= 700
    assert [tile.image_id for tile in ViewedImages.model_validate_json(texts(result)[0]).tiles] == ids
    links = [block.uri for block in result.content if isinstance(block, ResourceLink)]
    assert links == [f"pathsynth://images/{image_id}" for image_id in ids]


async def test_the_layout_is_the_tile_that_was_classified(client: Client, studio: FakeStudio) -> None:
    studio.tile = lambda seed: smooth_tile(seed, 224)
    (image_id,) = stored(studio, 1)
    detailed = await client.call_tool(TOOL, {"image_ids": [image_id], "width": 224})
    layout = await client.call_tool(TOOL, {"image_ids": [image_id], "width": 224, "layout": True})

    assert images(detailed)[0].data != images(layout)[0].data
    assert "Enlarged" not in texts(detailed)[1]
    assert "from 28 px" in texts(layout)[1]


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("edge", [28, 224])
async def test_the_worst_tiles_at_the_greatest_width_stay_below_the_size_limit(
    client: Client, studio: FakeStudio, count: int, edge: int
) -> None:
    studio.tile = lambda seed: noisy_tile(seed, edge)
    result = await client.call_tool(TOOL, {"image_ids": stored(studio, count), "width": 1024})

    assert not result.is_error, texts(result)
    assert len(result.model_dump_json(by_alias=True).encode()) <= RESULT_BYTES
    assert size_of(images(result)[0])[0] > 1000
    assert "JPEG" in texts(result)[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "`image_ids`"),
        ({"image_ids": []}, "`image_ids`"),
        ({"image_ids": ["0123456789abcdef"]}, "no stored image 0123456789abcdef"),
        ({"image_ids": ["../../etc/passwd"]}, "is not an image id"),
        ({"image_ids": ["0123456789abcdef"] * 10}, "`image_ids`"),
        ({"image_ids": ["0123456789abcdef"], "width": 27}, "`width`"),
        ({"image_ids": ["0123456789abcdef"], "width": 1025}, "`width`"),
        ({"image_ids": [7]}, "`image_ids.0`"),
    ],
)
async def test_a_bad_argument_is_refused_in_one_sentence_that_names_it(
    client: Client, arguments: dict[str, Any], named: str
) -> None:
    assert named in refusal(await client.call_tool(TOOL, arguments))


async def test_too_small_a_width_for_several_tiles_is_refused_with_the_least_one(
    client: Client, studio: FakeStudio
) -> None:
    sentence = refusal(await client.call_tool(TOOL, {"image_ids": stored(studio, 4), "width": 60}))

    assert "100 px at least" in sentence
    assert not (await client.call_tool(TOOL, {"image_ids": stored(studio, 4), "width": 100})).is_error
