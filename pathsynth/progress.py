"""How work that takes long is heard of, and how it is stopped."""

import time
from collections.abc import Callable

from pathsynth.errors import OutOfTimeError

Progress = Callable[[int, int, str], None]  # hears of (done, of how many, what is being done)
CheckCancelled = Callable[[], None]  # raises when the caller has gone


def deadline_after(started: float, time_budget: float | None) -> float | None:
    """The moment at which `time_budget` (seconds) is spent, on the clock that `started` was read from."""
    return None if time_budget is None else started + time_budget


def between_steps(check_cancelled: CheckCancelled | None, deadline: float | None) -> Callable[[], None]:
    """What to do before each denoising step: raise when the caller has gone, or when another step as long as
    the last one would end after `deadline`.
    """
    last: float | None = None

    def check() -> None:
        nonlocal last
        if check_cancelled is not None:
            check_cancelled()
        now = time.monotonic()
        step, last = 0.0 if last is None else now - last, now
        if deadline is not None and now + step >= deadline:
            raise OutOfTimeError("The time was spent before anything could be answered; ask for less.")

    return check
