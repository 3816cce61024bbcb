"""`view_image`: stored tiles again, as large as asked, alone or side by side.

As in `generate_tissue_image` the picture is what the model must see: text, image and links, no structured
content.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from mcp.server import MCPServer
from mcp_types import ContentBlock, TextContent, ToolAnnotations
from pydantic import Field

from pathsynth.errors import RequestError
from pathsynth.images import to_native, upscale
from pathsynth.mark import marked
from pathsynth.records import Record, TileRecord
from pathsynth.store import StoredImage
from pathsynth.studio import Studio
from tools.calls import as_text
from tools.generate_tissue_image import link
from tools.pictures import SENT_AS_JPEG, Tile, fit, image_block, marked_sheet, room_beside

NAME = "view_image"
MAX_IMAGES = 9
MIN_WIDTH, MAX_WIDTH = 28, 1024

DESCRIPTION = (
    "Show stored tiles again by their image_id: one at any width, or several on one numbered contact sheet. "
    "Returns JSON with the record of each, the picture, and links to the originals. For teaching, not for "
    "diagnosis."
)

_COLUMNS = 3
_GAP = 4


class ViewedImages(Record):
    """The records of the tiles on a picture, from left to right, and its width in px."""

    width: int
    tiles: list[TileRecord]


def picture_of(images: Sequence[StoredImage], width: int, layout: bool) -> Tile:
    """One tile enlarged or reduced to `width` px, or several on a contact sheet of at most that width.

    Raises:
        RequestError: so many tiles do not fit into so small a width.
    """
    tiles = [to_native(image.pixels()) if layout else image.pixels() for image in images]
    if len(tiles) == 1:
        return marked(upscale(tiles[0], width))
    columns = min(_COLUMNS, len(tiles))
    edge = (width - _GAP) // columns - _GAP
    if edge < MIN_WIDTH:
        least = columns * (MIN_WIDTH + _GAP) + _GAP
        raise RequestError(f"{len(tiles)} tiles side by side need a width of {least} px at least.")
    captions = [f"{number} {image.record.tissue}" for number, image in enumerate(images, start=1)]
    return marked_sheet([upscale(tile, edge) for tile in tiles], captions, columns)


def answer(images: Sequence[StoredImage], width: int, layout: bool) -> list[ContentBlock]:
    """The records as JSON, a note for the reader, the picture, and a link to each original."""
    picture = picture_of(images, width, layout)
    viewed = as_text(ViewedImages(width=picture.shape[1], tiles=[image.record for image in images]))
    links = [link(image.record, image.path.stat().st_size) for image in images]
    file, media_type = fit(picture, [image.record for image in images], room_beside([viewed, *links]))
    native = min(28 if layout else len(image.pixels()) for image in images)
    sentences = ["Synthetic and verified when made; for teaching, not for diagnosis."]
    if np.max(picture.shape[:2]) > native:
        sentences.append(f"Enlarged (Lanczos) from {native} px: there is no finer detail in the tiles.")
    if media_type == "image/jpeg":
        sentences.append(SENT_AS_JPEG)
    note = TextContent(type="text", text=" ".join(sentences))
    return [viewed, note, image_block(file, media_type), *links]


def register(server: MCPServer, studio: Studio) -> None:
    """Add `view_image` to `server`."""

    @server.tool(
        name=NAME,
        title="View stored tiles",
        description=DESCRIPTION,
        annotations=ToolAnnotations(
            title="View stored tiles",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )
    def view_image(
        image_ids: Annotated[
            list[Annotated[str, Field(max_length=40)]],
            Field(
                min_length=1,
                max_length=MAX_IMAGES,
                description="Image ids from generate_tissue_image; several share one contact sheet.",
            ),
        ],
        width: Annotated[
            int, Field(ge=MIN_WIDTH, le=MAX_WIDTH, description="Width of the picture in px.")
        ] = 448,
        layout: Annotated[
            bool, Field(description="Show the 28-px tile that was classified, without finer detail.")
        ] = False,
    ) -> list[ContentBlock]:
        images = [studio.store.get(image_id.strip().lower()) for image_id in image_ids]
        return answer(images, width, layout)
