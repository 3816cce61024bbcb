"""Many clients at once, with the real models: `python -m tests.conformance.load ADDRESS`.

Eight clients make 25 requests each over HTTP, then repeat them until the server has answered 500 calls. No
client may get another's image, an image that is not the stored one, or an error but that the queue is full;
and the server's memory may hardly grow.
"""

import base64
import io
import sys
from dataclasses import dataclass, field

import anyio
import httpx2
import numpy as np
from mcp import Client
from mcp_types import BlobResourceContents, CallToolResult, ImageContent, TextContent
from PIL import Image

from pathsynth.images import read_image_and_xmp
from pathsynth.provenance import claimed_tiles
from pathsynth.records import GenerationResult
from pathsynth.store import image_id_of
from pathsynth.tissues import TISSUES

CLIENTS = 8
REQUESTS = 25
CALLS = 500
WARM_UP = 2
FIRST_SEED = 80_000
MAX_GROWTH = 0.05
QUEUE_FULL = "make the same call again in"


@dataclass
class Findings:
    """How much was done, and what went wrong."""

    calls: int = 0
    verified: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)


def resident_bytes(address: str) -> float:
    """Memory of the server's process, as it tells it."""
    figures = httpx2.get(f"{address}/metrics").text.splitlines()
    (line,) = [line for line in figures if line.startswith("process_resident_memory_bytes ")]
    return float(line.split()[1])


async def check(client: Client, number: int, seed: int, findings: Findings) -> None:
    """One request, and whether what came back is what was asked for."""
    tissue = TISSUES[number % len(TISSUES)]
    arguments = {"tissue": tissue.code, "seed": seed, "max_attempts": 1}
    made = await client.call_tool("generate_tissue_image", arguments, read_timeout_seconds=120)
    findings.calls += 1
    said = [block.text for block in made.content if isinstance(block, TextContent)]
    if made.is_error:
        findings.refused += 1
        if QUEUE_FULL not in said[0]:
            findings.problems.append(f"refused: {said[0]}")
        return
    result = GenerationResult.model_validate_json(said[0])
    if (result.tissue, result.seed, result.attempts) != (tissue.code, seed, 1):
        findings.problems.append(f"asked for {arguments}, got {result.tissue} of seed {result.seed}")
    for tile in result.tiles:
        findings.verified += 1
        findings.problems += await _wrong_with(client, made, tile.image_id, seed)


async def _wrong_with(client: Client, made: CallToolResult, image_id: str, seed: int) -> list[str]:
    """What is wrong with the picture of an answer and with the stored image."""
    problems = []
    (picture,) = [block for block in made.content if isinstance(block, ImageContent)]
    (claim,) = claimed_tiles(read_image_and_xmp(base64.b64decode(picture.data))[1])
    if (claim.image_id, claim.seed) != (image_id, seed):
        problems.append(f"the picture of {image_id} says it is {claim.image_id}")
    (stored,) = (await client.read_resource(f"pathsynth://images/{image_id}")).contents
    assert isinstance(stored, BlobResourceContents)
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(stored.blob))).convert("RGB"))
    if image_id_of(pixels) != image_id:
        problems.append(f"the stored image {image_id} has other pixels")
    return problems


async def one_client(address: str, number: int, requests: range, findings: Findings) -> None:
    """The requests of one client, one after the other."""
    async with Client(f"{address}/mcp") as client:
        for request in requests:
            await check(client, number, FIRST_SEED + 1000 * number + request, findings)


async def all_clients(address: str, requests: range, findings: Findings) -> None:
    """Every client at once."""
    async with anyio.create_task_group() as clients:
        for number in range(CLIENTS):
            clients.start_soon(one_client, address, number, requests, findings)


async def load(address: str) -> int:
    """Make all calls. Returns the exit code."""
    findings = Findings()
    await all_clients(address, range(WARM_UP), findings)
    before = resident_bytes(address)
    await all_clients(address, range(WARM_UP, REQUESTS), findings)
    made = findings.verified
    while findings.calls < CALLS:
        await all_clients(address, range(REQUESTS), findings)
    growth = resident_bytes(address) / before - 1
    for problem in findings.problems[:20]:
        print(problem)
    print(
        f"{CLIENTS} clients, {findings.calls} calls: {made} tiles verified, {findings.refused} told that the "
        f"queue is full, {len(findings.problems)} problems; memory {before / 1e6:.0f} MB, "
        f"grown by {growth:.1%}"
    )
    return 1 if findings.problems or not made or growth > MAX_GROWTH else 0


if __name__ == "__main__":
    sys.exit(anyio.run(load, sys.argv[1].removesuffix("/mcp")))
