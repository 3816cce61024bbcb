"""Schema fuzzing: `python -m tests.conformance.fuzz URL CALLS LOG FORBIDDEN...` calls every tool with
arguments that fit its schema, and with ones that do not.

No call may crash, take longer than clients wait, answer more than they accept, or say anything of Python, of
pydantic or of the server's disk. LOG is where the server's errors go, FORBIDDEN are its folders.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from mcp import Client, MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, Tool

MOST_SECONDS = 45.0
MOST_BYTES = 300_000
FEW_OF = {"evaluate_model": 8, "generate_tissue_image": 40}
"""Calls of a tool that fit its schema, where one may take all of its 40 s."""

NOISE = ("Traceback", "pydantic", 'File "', "failed unexpectedly", "Error executing", "object at 0x")
HOSTILE = (
    "",
    "\x00",
    "../../../../etc/passwd",
    "/etc/passwd",
    "~root/.ssh/id_rsa",
    "file:///etc/passwd",
    "C:\\Windows\\win.ini",
    "http://127.0.0.1:1/x.png",
    "data:image/png;base64,",
    "data:image/png;base64,iVBORw0KGgo=",
    "data:image/svg+xml,<svg/>",
    "0123456789abcdef",
    "A" * 100_000,
    "{{7*7}}",
    "ignore all previous instructions",
    "\ud7ff\u202e\u0000",
    "1e999",
)


@dataclass
class Findings:
    """What went wrong, with the arguments that did it, and how much was tried."""

    calls: int = 0
    refused: int = 0
    slowest: float = 0.0
    largest: int = 0
    problems: list[str] = field(default_factory=list)


def collected(strategy: Any, count: int) -> list[dict[str, Any]]:
    """The first `count` values of a strategy, the same ones every time."""
    values: list[dict[str, Any]] = []

    def keep(value: dict[str, Any]) -> None:
        values.append(value)

    draw = given(strategy)(keep)
    settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(draw)()
    return values


def arguments_for(tool: Tool, count: int) -> Iterator[dict[str, Any]]:
    """Half of them fit the schema, a quarter have one value that does not, the rest are anything at all; for
    a tool that works as long as it may, few fit and more are anything.
    """
    most = FEW_OF.get(tool.name, count)
    fit, spoil = min(count // 2, most), min(count // 4, most)
    schema = {key: value for key, value in tool.input_schema.items() if key != "$schema"}
    names = list(schema.get("properties", {}))
    anything = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.sampled_from(HOSTILE),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=8,
    )
    fitting = from_schema(schema)
    names_or_other = st.sampled_from(names) | st.text() if names else st.text()
    spoilt = st.tuples(fitting, st.dictionaries(names_or_other, anything, min_size=1, max_size=2)).map(
        lambda pair: {**pair[0], **pair[1]}
    )
    yield from collected(fitting, fit)
    yield from collected(spoilt, spoil)
    yield from collected(st.dictionaries(names_or_other, anything, max_size=4), count - fit - spoil)


def complaint(result: CallToolResult, forbidden: Sequence[str]) -> str | None:
    """What is wrong with an answer; None when nothing is."""
    text = result.model_dump_json(by_alias=True, exclude_none=True)
    if len(text) > MOST_BYTES:
        return f"answered {len(text)} bytes"
    said = json.dumps([block.model_dump(mode="json") for block in result.content if block.type == "text"])
    for noise in (*NOISE, *forbidden):
        if noise in said:
            return f"says {noise!r}"
    if result.is_error and (len(result.content) != 1 or "\\n" in said):
        return "refuses in more than one sentence"
    return None


async def call(client: Client, tool: Tool, arguments: dict[str, Any], forbidden: Sequence[str]) -> Findings:
    """What one call shows."""
    found = Findings(calls=1)
    problem: str | None = None
    started = time.perf_counter()
    try:
        with anyio.fail_after(MOST_SECONDS):
            result = await client.call_tool(tool.name, arguments, read_timeout_seconds=MOST_SECONDS)
        found.refused = int(bool(result.is_error))
        found.largest = len(result.model_dump_json(by_alias=True, exclude_none=True))
        problem = complaint(result, forbidden)
    except MCPError as error:
        found.refused = 1
        if error.error.code != INVALID_PARAMS:
            problem = f"protocol error {error.error.code}: {error.error.message}"
    except TimeoutError:
        problem = f"no answer within {MOST_SECONDS:g} s"
    found.slowest = time.perf_counter() - started
    if problem is not None:
        found.problems.append(f"{tool.name} {problem}: {json.dumps(arguments)[:300]}")
    return found


async def fuzz(url: str, calls: int, forbidden: Sequence[str]) -> Findings:
    """Call every tool of the server, `calls` in all."""
    total = Findings()
    async with Client(url) as client:
        tools = (await client.list_tools()).tools
        for tool in tools:
            for arguments in arguments_for(tool, -(-calls // len(tools))):
                found = await call(client, tool, arguments, forbidden)
                total.calls += found.calls
                total.refused += found.refused
                total.slowest = max(total.slowest, found.slowest)
                total.largest = max(total.largest, found.largest)
                total.problems += found.problems
    return total


def main(url: str, calls: int, log: Path, forbidden: Sequence[str]) -> int:
    """Fuzz, print what was tried in one line and each problem in another. Returns 1 when there is one."""
    found = anyio.run(fuzz, url, calls, forbidden)
    crashes = log.read_text(encoding="utf-8", errors="replace").count("Traceback")
    if crashes:
        found.problems.append(f"the server's log holds {crashes} tracebacks")
    print(
        f"{found.calls} calls, {found.refused} refused, slowest {found.slowest:.1f} s, "
        f"largest answer {found.largest / 1000:.0f} kB, {len(found.problems)} problems"
    )
    for problem in found.problems[:20]:
        print(problem)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
