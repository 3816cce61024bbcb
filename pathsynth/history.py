"""What was asked before and what came of it, so that nothing is computed twice.

`requests/<request_id>.json` holds a request and its result so far, written anew after every attempt;
`rejected/<request_id>-<seed>.png` a 28-px tile that was not verified. Tiles that were verified are in the
image store. Attempts depend on their seed alone, so a request goes on from its record as if it had never
stopped, in the same process or another.
"""

import re
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from pathsynth.errors import ImageError, StoreError
from pathsynth.images import encode_png, read_image
from pathsynth.records import GenerationResult, Record
from pathsynth.store import HOME_VARIABLE, sweep, write_atomically

REQUEST_ID_PATTERN: Final = r"^[0-9a-f]{12}$"


class Remembered(Record):
    """A request and its result so far. `tissue` is the code that was asked for, None when the description
    decided; the other wishes stand in the result.
    """

    tissue: str | None
    max_attempts: int = Field(ge=1)
    result: GenerationResult


class RequestHistory:
    """The requests below `root`, the folder of the image store. Creating the object touches no disk.

    Several threads and processes may share a history; of two that write one request, the later wins.
    """

    def __init__(self, root: Path) -> None:
        self._requests = root / "requests"
        self._rejected = root / "rejected"

    def load(self, request_id: str) -> Remembered | None:
        """What is remembered of a request; None when there is nothing, or nothing that can be read."""
        if re.fullmatch(REQUEST_ID_PATTERN, request_id) is None:
            return None
        try:
            remembered = Remembered.model_validate_json((self._requests / f"{request_id}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        return remembered if remembered.result.request_id == request_id else None

    def save(self, remembered: Remembered) -> None:
        """Remember a request, in the place of what was remembered of it before.

        Raises:
            StoreError: the folder cannot be written.
        """
        text = remembered.model_dump_json() + "\n"
        self._write(self._requests / f"{remembered.result.request_id}.json", text.encode("utf-8"))

    def save_rejected(self, request_id: str, seed: int, tile: npt.NDArray[np.uint8]) -> None:
        """Keep a tile (S, S, 3) that was not verified, apart from the image store.

        Raises:
            StoreError: the folder cannot be written.
        """
        self._write(self._rejected_path(request_id, seed), encode_png(tile))

    def rejected(self, request_id: str, seed: int) -> npt.NDArray[np.uint8] | None:
        """The rejected tile (S, S, 3) of one attempt; None when it is not there or damaged."""
        try:
            return read_image(self._rejected_path(request_id, seed))
        except ImageError:
            return None

    def sweep(self) -> None:
        """Remove what a killed process left behind."""
        for folder in (self._requests, self._rejected):
            sweep(folder)

    def _rejected_path(self, request_id: str, seed: int) -> Path:
        return self._rejected / f"{request_id}-{seed}.png"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_atomically(path, content)
        except StoreError as error:
            raise StoreError(
                f"{path.parent}, where requests are remembered, cannot be written; "
                f"free some space there, or set {HOME_VARIABLE} to a folder that can be written."
            ) from error
