"""Resources: the stored originals behind the links that the tools hand out, and their records."""

import re

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from pathsynth.errors import StoreError
from pathsynth.records import IMAGE_ID_PATTERN
from pathsynth.store import StoredImage
from pathsynth.studio import Studio
from tools.generate_tissue_image import image_uri
from tools.wording import without_folders


def register(server: MCPServer, studio: Studio) -> None:
    """Add `pathsynth://images/{image_id}` and `pathsynth://images/{image_id}/record` to `server`."""

    def stored(image_id: str) -> StoredImage:
        if not re.fullmatch(IMAGE_ID_PATTERN, image_id):
            raise ResourceNotFoundError(
                "An image id has 16 hexadecimal digits, as in the answer of generate_tissue_image."
            )
        try:
            return studio.store.get(image_id)
        except StoreError as error:
            raise ResourceNotFoundError(without_folders(str(error))) from error

    @server.resource(
        image_uri("{image_id}"),
        name="image",
        title="Stored tile",
        description="The stored original of a generated tile as PNG, at its native size.",
        mime_type="image/png",
    )
    def image(image_id: str) -> bytes:
        return stored(image_id).path.read_bytes()

    @server.resource(
        image_uri("{image_id}") + "/record",
        name="record",
        title="Record of a stored tile",
        description="How a tile came about: tissue, description, seed, confidence, attempts, model.",
        mime_type="application/json",
    )
    def record(image_id: str) -> str:
        return stored(image_id).record.model_dump_json()
