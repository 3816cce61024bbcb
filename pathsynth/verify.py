"""The loop: propose, classify, keep what the validator agrees with, go on until enough is kept.

Every attempt is reported, kept or not. The same request gives the same attempts: attempt i has seed `seed +
i`, and a tile depends on its own seed alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathsynth.records import MAX_SEED
from pathsynth.tissues import Tissue
from pathsynth.validator import Prediction

MAX_BATCH = 9
Propose = Callable[[Sequence[int]], npt.NDArray[np.uint8]]
Classify = Callable[[npt.NDArray[np.uint8]], list[Prediction]]


@dataclass(frozen=True)
class LoopRequest:
    """How many tiles of which tissue, from which seed, how sure the validator must be, and when to give up.

    `time_budget` in seconds bounds when the last batch may start; None is no bound.
    """

    tissue: Tissue
    count: int
    seed: int
    min_confidence: float
    max_attempts: int
    time_budget: float | None = None


@dataclass(frozen=True)
class Attempt:
    """One proposed tile (28, 28, 3) uint8, what the validator says of it, and whether it was kept."""

    seed: int
    tile: npt.NDArray[np.uint8]
    prediction: Prediction
    verified: bool


def verified_tiles(
    request: LoopRequest, propose: Propose, classify: Classify, clock: Callable[[], float] = time.monotonic
) -> Iterator[Attempt]:
    """Attempts in the order of their seeds, until `count` are verified or attempts or time are spent."""
    started, kept, tried = clock(), 0, 0
    while kept < request.count and tried < request.max_attempts:
        if request.time_budget is not None and clock() - started >= request.time_budget:
            return
        size = min(request.count - kept, request.max_attempts - tried, MAX_BATCH)
        seeds = [(request.seed + tried + i) % (MAX_SEED + 1) for i in range(size)]
        tiles = propose(seeds)
        for seed, tile, prediction in zip(seeds, tiles, classify(tiles), strict=True):
            agrees = (
                prediction.code == request.tissue.code and prediction.confidence >= request.min_confidence
            )
            verified = agrees and prediction.in_distribution
            kept += verified
            yield Attempt(seed, tile, prediction, verified)
        tried += size
