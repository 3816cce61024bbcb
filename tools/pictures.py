"""Pictures for an answer: PNG, at least 224 px on every edge, and together small enough to be sent.

Vision models read edges under 200 px badly, and clients drop results that are too large; tiles that do not
fit one by one share a contact sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathsynth.images import contact_sheet, encode_png, upscale
from pathsynth.mark import MARKED_EDGE, is_marking, marked
from pathsynth.provenance import NOTICE, provenance_text
from pathsynth.records import TileRecord

Tile = npt.NDArray[np.uint8]

SHOWN_EDGE = 224
PICTURE_BYTES = 200_000
"""PNG bytes of all pictures of one answer; base64 makes 267 kB of it, which leaves room for the text."""

_SHEET_EDGES = (224, 168, 112, 84, 56, 28)
_SHEET_COLUMNS = 3


@dataclass(frozen=True)
class Pictures:
    """PNG files to show, and what was done to the tiles: `enlarged` from a smaller native edge, on one
    `sheet` together."""

    files: tuple[bytes, ...]
    enlarged: bool
    sheet: bool


def show(tiles: Sequence[Tile], captions: Sequence[str], records: Sequence[TileRecord]) -> Pictures:
    """Render square tiles, uint8 (S, S, 3) RGB, to be looked at: with the visible mark, and with their
    `records` as provenance in the files.

    One PNG a tile, enlarged to 224 px with Lanczos where it is smaller, while all of them fit
    `PICTURE_BYTES`; otherwise one contact sheet of three columns with `captions`, at the largest tile edge
    that fits.
    """
    enlarged = any(len(tile) < SHOWN_EDGE for tile in tiles)
    single = tuple(
        encode_png(marked(_at_least(tile, SHOWN_EDGE)), provenance_text([record]))
        for tile, record in zip(tiles, records, strict=True)
    )
    if len(single) <= 1 or sum(map(len, single)) <= PICTURE_BYTES:
        return Pictures(single, enlarged, sheet=False)
    for edge in _SHEET_EDGES:
        legend = NOTICE if edge < MARKED_EDGE and is_marking() else ""
        enlarged_tiles = [marked(upscale(tile, edge)) for tile in tiles]
        sheet = contact_sheet(enlarged_tiles, captions, _SHEET_COLUMNS, legend)
        file = encode_png(_at_least(sheet, SHOWN_EDGE), provenance_text(records))
        if len(file) <= PICTURE_BYTES:
            break
    return Pictures((file,), enlarged, sheet=True)


def _at_least(image: Tile, edge: int) -> Tile:
    """The image itself, or enlarged to `edge` px when it is a smaller square."""
    return image if min(image.shape[:2]) >= edge else upscale(image, edge)
