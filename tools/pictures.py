"""Pictures for an answer: at least 224 px on every edge, and together small enough to be sent.

Vision models read edges under 200 px badly, and clients drop results that are too large; tiles that do not
fit one by one share a contact sheet. Verified tiles are PNG; a picture that would be too large or lose detail
as PNG, and the thumbnails of rejected tiles, are JPEG.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from mcp_types import ContentBlock, ImageContent
from PIL import Image

from pathsynth.images import XMP_KEYWORD, contact_sheet, encode_png, upscale
from pathsynth.mark import MARKED_EDGE, is_marking, marked
from pathsynth.provenance import NOTICE, provenance_text
from pathsynth.records import TileRecord
from tools.calls import RESULT_BYTES

Tile = npt.NDArray[np.uint8]
MediaType = Literal["image/png", "image/jpeg"]

SHOWN_EDGE = 224
PICTURE_BYTES = 200_000
"""Bytes of all pictures of one answer; base64 makes 267 kB of it, which leaves room for the text."""

REJECTED_BYTES = 60_000
"""What of it the sheet of rejected tiles may take."""

MAX_REJECTED = 24

SENT_AS_JPEG = "Sent as JPEG, since it is too large as PNG; the links lead to the originals."

_SHEET_EDGES = (28, 56, 84, 112, 168, 224)
_SHEET_COLUMNS = 3
_REJECTED_EDGES = (112, 84, 56, 28)
_REJECTED_COLUMNS = 6
_QUALITIES = (90, 75, 60, 40, 20)
_GOOD_QUALITIES = _QUALITIES[:3]
_QUICK = 3
"""Compression level: a third of the time of the stored files' level 6, for a tenth more bytes."""

_GROWTH = 1.2
"""A little less than the power of the edge, 1.3 to 1.5, with which PNG files of enlarged tiles grow."""

_HOPELESS = 1.15
_WRAPPING = 2_000
_FRAME = 3
_RED = (200, 30, 30)


@dataclass(frozen=True)
class Pictures:
    """Files to show, and what was done to the tiles: `enlarged` from a smaller native edge, on one `sheet`
    together."""

    files: tuple[bytes, ...]
    enlarged: bool
    sheet: bool
    media_type: MediaType = "image/png"


def show(
    tiles: Sequence[Tile],
    captions: Sequence[str],
    records: Sequence[TileRecord],
    limit: int = PICTURE_BYTES,
) -> Pictures:
    """Render square tiles, uint8 (S, S, 3) RGB, to be looked at: with the visible mark, and with their
    `records` as provenance in the files.

    One PNG a tile, enlarged to 224 px with Lanczos where it is smaller, when all of them fit into `limit`
    bytes, and the first leaves hope of it; otherwise one contact sheet of three columns with `captions`, at
    the largest tile edge that fits, or, where a PNG would have to be smaller than tiles of 224 px and a good
    JPEG would not, as JPEG.
    """
    enlarged = any(len(tile) < SHOWN_EDGE for tile in tiles)
    first = _png(marked(_at_least(tiles[0], SHOWN_EDGE)), records[:1])
    if len(tiles) * len(first) <= _HOPELESS * limit or len(tiles) == 1:
        rest = zip(tiles[1:], records[1:], strict=True)
        single = [first, *(_png(marked(_at_least(tile, SHOWN_EDGE)), [record]) for tile, record in rest)]
        if sum(map(len, single)) <= limit or len(tiles) == 1:
            return Pictures(tuple(single), enlarged, sheet=False)

    def sheet_of(edge: int) -> Tile:
        sheet = marked_sheet([upscale(tile, edge) for tile in tiles], captions, _SHEET_COLUMNS)
        return _at_least(sheet, SHOWN_EDGE)

    if not enlarged:
        file = _best_jpeg(sheet_of(SHOWN_EDGE), provenance_text(records), limit, _GOOD_QUALITIES)
        if len(file) <= limit:
            return Pictures((file,), enlarged, sheet=True, media_type="image/jpeg")

    # From the edge that the first tile lets expect: encoding is what an answer from the store waits for.
    expected = [_likely(len(tiles) * len(first), SHOWN_EDGE, edge) for edge in _SHEET_EDGES]
    place = max((i for i, size in enumerate(expected) if size <= limit), default=0)
    file = _png(sheet_of(_SHEET_EDGES[place]), records)
    while len(file) > limit and place > 0:
        place -= 1
        file = _png(sheet_of(_SHEET_EDGES[place]), records)
    for edge, larger in pairwise(_SHEET_EDGES[place:]):
        if _likely(len(file), edge, larger) > limit:
            break
        tried = _png(sheet_of(larger), records)
        if len(tried) > limit:
            break
        file = tried
    return Pictures((file,), enlarged, sheet=True)


def _likely(size: int, edge: int, other: int) -> float:
    """Bytes at most, for a smaller edge, or at least, for a larger one, of what takes `size` at an edge."""
    return float(size * (other / edge) ** _GROWTH)


def marked_sheet(tiles: Sequence[Tile], captions: Sequence[str], columns: int) -> Tile:
    """A contact sheet with the visible mark on every tile, or in its footer where tiles are too small."""
    small = min(map(len, tiles)) < MARKED_EDGE
    footer = NOTICE if small and is_marking() else ""
    return contact_sheet([marked(tile) for tile in tiles], captions, columns, footer)


def show_rejected(tiles: Sequence[Tile], captions: Sequence[str]) -> bytes:
    """One JPEG with the thumbnails of at most `MAX_REJECTED` rejected tiles, each in a red frame, with
    captions."""
    text = provenance_text([], title="Rejected synthetic tiles")
    for edge in _REJECTED_EDGES:
        framed = [_framed(upscale(tile, edge)) for tile in tiles]
        file = _jpeg(_padded(marked_sheet(framed, captions, _REJECTED_COLUMNS)), _QUALITIES[0], text)
        if len(file) <= REJECTED_BYTES:
            break
    return file


def fit(picture: Tile, records: Sequence[TileRecord], limit: int = PICTURE_BYTES) -> tuple[bytes, MediaType]:
    """A picture (H, W, 3) of the tiles of `records` as PNG, or, where that takes more than `limit` bytes, as
    JPEG of the best quality that fits; either with the provenance of the tiles.
    """
    file = _png(picture, records)
    if len(file) <= limit:
        return file, "image/png"
    return _best_jpeg(picture, provenance_text(records), limit, _QUALITIES), "image/jpeg"


def image_block(file: bytes, media_type: MediaType = "image/png") -> ImageContent:
    """A picture as a block of an answer."""
    return ImageContent(type="image", data=base64.b64encode(file).decode("ascii"), mime_type=media_type)


def room_beside(blocks: Sequence[ContentBlock]) -> int:
    """Bytes that pictures may have in an answer that has `blocks` as well, at most `PICTURE_BYTES`."""
    taken = sum(len(block.model_dump_json(by_alias=True).encode()) for block in blocks)
    return min(PICTURE_BYTES, (RESULT_BYTES - _WRAPPING - taken) * 3 // 4)


def _at_least(image: Tile, edge: int) -> Tile:
    """The image itself, or enlarged to `edge` px when it is a smaller square."""
    return image if min(image.shape[:2]) >= edge else upscale(image, edge)


def _padded(image: Tile) -> Tile:
    """The image on white, so that no edge is shorter than `SHOWN_EDGE`."""
    height, width = image.shape[:2]
    below, beside = max(0, SHOWN_EDGE - height), max(0, SHOWN_EDGE - width)
    return np.pad(image, ((0, below), (0, beside), (0, 0)), constant_values=255)


def _framed(tile: Tile) -> Tile:
    framed = np.full_like(tile, _RED)
    framed[_FRAME:-_FRAME, _FRAME:-_FRAME] = tile[_FRAME:-_FRAME, _FRAME:-_FRAME]
    return framed


def _png(image: Tile, records: Sequence[TileRecord]) -> bytes:
    return encode_png(image, provenance_text(records), _QUICK)


def _best_jpeg(image: Tile, text: Mapping[str, str], limit: int, qualities: Sequence[int]) -> bytes:
    """Of the best of the descending qualities that fits into `limit` bytes, else of the last."""
    for quality in qualities:
        file = _jpeg(image, quality, text)
        if len(file) <= limit:
            break
    return file


def _jpeg(image: Tile, quality: int, text: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, xmp=text[XMP_KEYWORD].encode("utf-8"))
    return file.getvalue()
