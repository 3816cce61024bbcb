"""How much a call costs beside the work itself: `python -m tests.conformance.speed`.

Times one attempt at a tile, warm, through the server over stdio and by the library alone, each with the same
requests; fails when the median through the server is more than 1.5 times that of the library.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

from pathsynth.store import HOME_VARIABLE
from pathsynth.studio import GenerationRequest, Studio
from pathsynth.tissues import TISSUES

MOST = 1.5
CALLS = 15
FIRST_SEED = 70_000


async def through_the_server(seeds: range) -> list[float]:
    """Seconds of each call."""
    command = StdioServerParameters(command=sys.executable, args=["-m", "server.main"], env=dict(os.environ))
    taken = []
    async with Client(command) as client:
        for seed in seeds:
            started = time.perf_counter()
            arguments = {"tissue": TISSUES[0].code, "seed": seed, "max_attempts": 1}
            result = await client.call_tool("generate_tissue_image", arguments, read_timeout_seconds=60)
            taken.append(time.perf_counter() - started)
            if result.is_error:
                raise SystemExit(f"a call was refused: {result.content}")
    return taken


def by_the_library(seeds: range, home: Path) -> list[float]:
    """Seconds of each request."""
    studio, tissue, taken = Studio(home=home), TISSUES[0], []
    for seed in seeds:
        started = time.perf_counter()
        studio.generate(
            GenerationRequest.checked(
                description=tissue.prompt, tissue=tissue.code, seed=seed, max_attempts=1
            )
        )
        taken.append(time.perf_counter() - started)
    return taken


def main() -> int:
    """Measure and compare. The first request of each loads the models and does not count."""
    seeds = range(FIRST_SEED, FIRST_SEED + CALLS + 1)
    with tempfile.TemporaryDirectory(prefix="pathsynth-speed-") as folder:
        os.environ[HOME_VARIABLE] = str(Path(folder) / "server")
        server = statistics.median(anyio.run(through_the_server, seeds)[1:])
        library = statistics.median(by_the_library(seeds, Path(folder) / "library")[1:])
    ratio = server / library
    print(f"median of {CALLS}: server {server:.2f} s, library {library:.2f} s, {ratio:.2f} times")
    return 0 if ratio <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
