"""Finding the stored tile that a picture shows, when the picture was enlarged, marked, scaled or re-encoded.

Both are brought to 28 px in the same way, and only the part that the visible mark never touches is compared.

The limits come from 5,002 real tiles of PathMNIST val beside 15,000 of train, 75 million pairs of different
tiles: none of them passes as the same. The nearest textured pair differs by 3.1 grey levels, the nearest pair
with a plain tile by 0.57. Plain tiles, most of them background, are told apart by faint noise that lossy
formats destroy, so they count as the same only while hardly anything has changed.
"""

import threading
from collections.abc import Callable, Collection
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from pathsynth.images import NATIVE_EDGE, Picture, to_native, upscale
from pathsynth.mark import MARKED_SHARE

MAX_DIFFERENCE: Final = 3.0
MIN_CORRELATION: Final = 0.96
PLAIN_CONTRAST: Final = 6.0
MAX_DIFFERENCE_OF_PLAIN: Final = 0.4
"""Limits in grey levels, root mean square; contrast is the standard deviation of the luma."""

_ENLARGED: Final = 224
_ROWS: Final = NATIVE_EDGE - int(np.ceil(NATIVE_EDGE * MARKED_SHARE)) - 1  # resizing mixes neighbouring rows
_LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_CHUNK: Final = 4096
_CANDIDATES: Final = 8

Codes = npt.NDArray[np.uint8]


def shows_tile(picture: Picture, tile: Picture) -> bool:
    """Whether `picture`, uint8 RGB (H, W, 3), shows `tile` (S, S, 3): the same pixels, however enlarged.

    Rotated, mirrored and cropped pictures are not recognised, and plain tiles hardly survive a lossy format.

    Raises:
        ImageError: an edge is shorter than 28 px.
    """
    return difference(appearance(picture), appearance(tile)) is not None


def appearance(picture: Picture) -> npt.NDArray[np.float32]:
    """What is compared of a picture (H, W, 3): the upper rows of its central square at 28 px, as (23, 28, 3).
    One of 28 px is enlarged first, since it would else be sharper than its own enlargement.

    Raises:
        ImageError: an edge is shorter than 28 px.
    """
    if picture.shape[:2] == (NATIVE_EDGE, NATIVE_EDGE):
        picture = upscale(picture, _ENLARGED)
    return to_native(picture)[:_ROWS].astype(np.float32)


def difference(seen: npt.NDArray[np.float32], known: npt.NDArray[np.float32]) -> float | None:
    """Root mean square difference of two appearances in grey levels; None when they are not of one tile."""
    apart = float(np.sqrt(np.mean((seen - known) ** 2)))
    first, second = ((each @ _LUMA).ravel() for each in (seen, known))
    contrasts = first.std(), second.std()
    if min(contrasts) < PLAIN_CONTRAST:
        return apart if apart <= MAX_DIFFERENCE_OF_PLAIN else None
    correlation = np.mean((first - first.mean()) * (second - second.mean())) / np.prod(contrasts)
    return apart if apart <= MAX_DIFFERENCE and correlation >= MIN_CORRELATION else None


class LikenessIndex:
    """Which tiles of a growing collection may be the one a picture shows, from a short code of each.

    A code is read once and kept. Threads may share an index.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._codes: Codes = np.empty((0, _ROWS * NATIVE_EDGE), dtype=np.uint8)
        self._lock = threading.Lock()

    def candidates(
        self, picture: Picture, ids: Collection[str], pixels_of: Callable[[str], Picture | None]
    ) -> list[str]:
        """Those of `ids` that look most like `picture`, at most eight, the likeliest first.

        `pixels_of` gives the tile (S, S, 3) of an id that is new, None when it cannot be read.
        """
        with self._lock:
            self._update(ids, pixels_of)
            if not self._ids:
                return []
            seen = (appearance(picture) @ _LUMA).ravel()
            apart = np.concatenate(
                [
                    np.square(self._codes[start : start + _CHUNK] - seen).mean(axis=1)
                    for start in range(0, len(self._codes), _CHUNK)
                ]
            )
            nearest = np.argsort(apart, kind="stable")[:_CANDIDATES]
            return [self._ids[place] for place in nearest if apart[place] <= (MAX_DIFFERENCE + 1) ** 2]

    def _update(self, ids: Collection[str], pixels_of: Callable[[str], Picture | None]) -> None:
        present = set(ids)
        stays = np.array([each in present for each in self._ids], dtype=bool)
        if not stays.all():
            self._codes = self._codes[stays]
            self._ids = [each for each in self._ids if each in present]
        added, codes = [], []
        for image_id in sorted(present.difference(self._ids)):
            pixels = pixels_of(image_id)
            if pixels is not None:
                added.append(image_id)
                codes.append(_code(pixels))
        if added:
            self._ids += added
            self._codes = np.concatenate([self._codes, np.stack(codes)])


def _code(tile: Picture) -> Codes:
    """Luma of the appearance of a tile (S, S, 3), nearly: without clipping, and so much faster."""
    luma = to_native(tile).astype(np.float32) @ _LUMA
    if len(tile) == NATIVE_EDGE:
        luma = _enlarged_and_back() @ luma @ _enlarged_and_back().T
    code: Codes = np.clip(np.rint(luma[:_ROWS]), 0, 255).astype(np.uint8).ravel()
    return code


@cache
def _enlarged_and_back() -> npt.NDArray[np.float32]:
    """Enlarging 28 px with Lanczos and resizing back, along one axis, as a matrix (28, 28)."""
    impulses = Image.fromarray(np.eye(NATIVE_EDGE, dtype=np.float32))
    enlarged = impulses.resize((NATIVE_EDGE, _ENLARGED), Image.Resampling.LANCZOS)
    return np.asarray(enlarged.resize((NATIVE_EDGE, NATIVE_EDGE), Image.Resampling.BILINEAR))
