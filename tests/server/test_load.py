"""Many clients and many calls over HTTP, to a server without models in a process of its own."""

import base64
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import Client

from pathsynth.records import GenerationResult
from pathsynth.store import image_id_of
from pathsynth.tissues import CODES
from server.http import MCP_PATH
from tests.fakes import smooth_tile
from tests.mcp_fixtures import images, refusal, served_apart, texts
from tools.pictures import show

pytestmark = pytest.mark.anyio

CLIENTS = 8
REQUESTS = 25
CALLS = 500
MAX_GROWTH = 0.05


async def test_eight_clients_at_once_each_get_their_own_images_in_order(mode: str, tmp_path: Path) -> None:
    answered: dict[int, list[int]] = {number: [] for number in range(CLIENTS)}

    async def work(number: int, url: str) -> None:
        code = CODES[number]
        async with Client(url, mode=mode) as client:
            for request in range(REQUESTS):
                seed = 1000 * number + 10 * request
                made = await client.call_tool("generate_tissue_image", {"tissue": code, "seed": seed})
                if made.is_error:
                    assert "make the same call again in" in refusal(made)  # the queue was full
                    continue
                result = GenerationResult.model_validate_json(texts(made)[0])
                tile = smooth_tile(seed)
                assert (result.tissue, result.seed, result.verified) == (code, seed, True)
                assert result.tiles[0].image_id == image_id_of(tile)
                expected = show([tile], [f"1 {code} 0.95"], result.tiles).files
                assert [base64.b64decode(image.data) for image in images(made)] == list(expected)
                answered[number].append(request)

    with served_apart(tmp_path) as (address, _), anyio.fail_after(300):
        async with anyio.create_task_group() as clients:
            for number in range(CLIENTS):
                clients.start_soon(work, number, address + MCP_PATH)

    assert {number: sorted(order) == order for number, order in answered.items()} == dict.fromkeys(
        range(CLIENTS), True
    )
    assert sum(map(len, answered.values())) >= CLIENTS * REQUESTS * 0.9


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="only Linux tells the memory of a process")
async def test_five_hundred_calls_do_not_grow_the_server(mode: str, tmp_path: Path) -> None:
    with served_apart(tmp_path) as (address, _), anyio.fail_after(300):
        async with Client(address + MCP_PATH, mode=mode) as client:

            async def call(seed: int) -> None:
                made = await client.call_tool("generate_tissue_image", {"tissue": "ADI", "seed": seed})
                assert not made.is_error

            for seed in range(CALLS // 10):  # what the first calls load and cache is not growth
                await call(seed)
            before = resident_bytes(address)
            for seed in range(CALLS):
                await call(1000 + seed)
            after = resident_bytes(address)

    print(f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after {CALLS} calls")
    assert after < before * (1 + MAX_GROWTH)


def resident_bytes(address: str) -> float:
    """Memory of the server's process, as it tells it."""
    figures = httpx2.get(f"{address}/metrics").text.splitlines()
    (line,) = [line for line in figures if line.startswith("process_resident_memory_bytes ")]
    return float(line.split()[1])
