"""The loop: propose, classify, keep what the validator agrees with, go on until enough is kept.

Every attempt is reported, kept or not. The same request gives the same attempts: attempt i has seed `seed +
i`, and a tile depends on its own seed alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathsynth.records import MAX_SEED, RejectedFor
from pathsynth.tissues import Tissue


@dataclass(frozen=True)
class Prediction:
    """What the validator says of one tile."""

    code: str
    confidence: float
    probabilities: dict[str, float]
    ood_score: float

    @property
    def in_distribution(self) -> bool:
        """Whether the tile lies where the training tiles lie."""
        return self.ood_score < 1


Propose = Callable[[Sequence[int]], npt.NDArray[np.uint8]]
Classify = Callable[[npt.NDArray[np.uint8]], list[Prediction]]
AddDetail = Callable[[npt.NDArray[np.uint8], int], "Detailed | None"]
IsNearCopy = Callable[[npt.NDArray[np.uint8], Tissue], bool]


@dataclass(frozen=True)
class LoopRequest:
    """How many tiles of which tissue, from which seed, how sure the validator must be, and when to give up.

    `time_budget` in seconds bounds when the last attempt may start; None is no bound. `kept` and `tried`
    count what was done before of the same request, which is not done again.
    """

    tissue: Tissue
    count: int
    seed: int
    min_confidence: float
    max_attempts: int
    time_budget: float | None = None
    kept: int = 0
    tried: int = 0


@dataclass(frozen=True)
class Detailed:
    """A tile with its detail, uint8 (224, 224, 3), what the validator says of it, how far its resizing is
    from the layout tile (root mean square, grey levels), and which of several details it is.
    """

    picture: npt.NDArray[np.uint8]
    prediction: Prediction
    rmse: float
    variation: int = 0


@dataclass(frozen=True)
class Attempt:
    """One proposed tile (28, 28, 3) uint8, what the validator says of it, why it was not kept, if so, and
    the tile with its detail, if it was given any.
    """

    seed: int
    tile: npt.NDArray[np.uint8]
    prediction: Prediction
    rejected_for: RejectedFor | None
    detailed: Detailed | None = None

    @property
    def verified(self) -> bool:
        """Whether the tile was kept."""
        return self.rejected_for is None


def verified_tiles(
    request: LoopRequest,
    propose: Propose,
    classify: Classify,
    is_near_copy: IsNearCopy | None = None,
    clock: Callable[[], float] = time.monotonic,
    add_detail: AddDetail | None = None,
    at_once: int = 1,
) -> Iterator[Attempt]:
    """Attempts in the order of their seeds, until `count` are verified or attempts or time are spent.

    At most `at_once` tiles are proposed together, and never more than are still to be kept, so that each is
    known soon after it is made, none is made in vain, and no more are under way when the time is spent or the
    caller stops. Only tiles that the validator agrees with are asked whether they are near copies of a
    training tile; only what is then left gets its detail, by `add_detail` from the tile and its seed, and is
    kept when the validator agrees with the result as well.
    """
    started, kept, tried = clock(), request.kept, request.tried
    while kept < request.count and tried < request.max_attempts:
        if request.time_budget is not None and clock() - started >= request.time_budget:
            return
        together = min(at_once, request.count - kept, request.max_attempts - tried)
        seeds = [(request.seed + tried + i) % (MAX_SEED + 1) for i in range(together)]
        tiles = propose(seeds)
        for seed, tile in zip(seeds, tiles, strict=True):
            (prediction,) = classify(tile[np.newaxis])
            reason = _reason_against(request, prediction)
            if reason is None and is_near_copy is not None and is_near_copy(tile, request.tissue):
                reason = "near copy"
            detailed = None
            if reason is None and add_detail is not None:
                detailed = add_detail(tile, seed)
                if detailed is None or _reason_against(request, detailed.prediction) is not None:
                    detailed, reason = None, "lost by detail"
            kept += reason is None
            tried += 1
            yield Attempt(seed, tile, prediction, reason, detailed)


def _reason_against(request: LoopRequest, prediction: Prediction) -> RejectedFor | None:
    if prediction.code != request.tissue.code:
        return "other tissue"
    if prediction.confidence < request.min_confidence:
        return "low confidence"
    return None if prediction.in_distribution else "out of distribution"
