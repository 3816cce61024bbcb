"""What the HTTP server counts for Prometheus: calls, their duration, tiles, the queue, the process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from mcp.server.mcpserver.exceptions import UnexpectedToolError
from mcp_types import CallToolResult, InputRequiredResult, TextContent
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from pydantic import ValidationError

from pathsynth.records import GenerationResult

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0)


class Queue(Protocol):
    """What is told of a work queue."""

    @property
    def running(self) -> int:
        """Calls that work now."""

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""


class Metrics:
    """Figures of one server, in a registry of their own.

    The memory and processor time of the process are among them where /proc tells them, which is on Linux.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._calls = Counter(
            "pathsynth_tool_calls",
            "Finished tool calls; outcome is answered, refused, crashed or cancelled.",
            ("tool", "outcome"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "pathsynth_tool_seconds",
            "Wall time of tool calls in seconds, waiting included.",
            ("tool",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._tiles = Counter(
            "pathsynth_verified_tiles", "Verified tiles in answers.", ("tissue",), registry=self._registry
        )
        self._attempts = Counter(
            "pathsynth_attempts",
            "Attempts behind the tiles in answers, verified or not.",
            ("tissue",),
            registry=self._registry,
        )

    @contextmanager
    def call(self, tool: str) -> Iterator[None]:
        """Time the call that runs inside, and count it by how it ends."""
        started = time.perf_counter()
        outcome = "answered"
        try:
            yield
        except UnexpectedToolError:
            outcome = "crashed"
            raise
        except Exception:
            outcome = "refused"
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            self._calls.labels(tool, outcome).inc()
            self._seconds.labels(tool).observe(time.perf_counter() - started)

    def count_tiles(self, answer: CallToolResult | InputRequiredResult) -> None:
        """Count the tiles and attempts that an answer of generate_tissue_image tells of in its first block;
        one that tells of none counts nothing."""
        first = answer.content[0] if isinstance(answer, CallToolResult) and answer.content else None
        if not isinstance(first, TextContent):
            return
        try:
            result = GenerationResult.model_validate_json(first.text)
        except ValidationError:
            return
        self._tiles.labels(result.tissue).inc(len(result.tiles))
        self._attempts.labels(result.tissue).inc(result.attempts)

    def watch(self, queue: Queue) -> None:
        """Tell from now on how many calls run and wait in `queue`."""
        running = Gauge("pathsynth_queue_running", "Calls that work now.", registry=self._registry)
        waiting = Gauge("pathsynth_queue_waiting", "Calls that wait their turn.", registry=self._registry)
        running.set_function(lambda: queue.running)
        waiting.set_function(lambda: queue.waiting)

    def exposition(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self._registry)
