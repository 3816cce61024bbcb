"""`classify_image`: what the validator sees in an image, one of ours or not."""

import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from pathsynth.errors import ImageError, RequestError
from pathsynth.records import IMAGE_ID_PATTERN, Classification
from pathsynth.store import ImageStore
from pathsynth.studio import Studio
from tools.calls import ProgressReporter, as_text, new_deadline, turn
from tools.queue import Line, WorkQueue
from tools.threads import in_own_thread

NAME = "classify_image"
MAX_IMAGE_CHARACTERS = 16_000_000
"""Longest `image` argument: 12 MB of image as base64."""

DESCRIPTION = (
    "Name the colorectal tissue in an image: the three likeliest (`top`) and all nine with calibrated "
    "probabilities, and whether it looks like a colorectal H&E tile at all (`in_distribution`, in words in "
    "`verdict`; when false, do not trust the tissue). Best on one tile of about 112 um edge. For teaching, "
    "not for diagnosis."
)

_MAX_PATH = 4096
_WEB_ADDRESS = re.compile(r"(?i)(https?|ftp)://")
_BASE64_OF_JPEG = "/9j/"


def load(image: str, store: ImageStore, folders: Sequence[Path]) -> tuple[Path | bytes, str]:
    """Find what the `image` argument means: a stored image, bytes sent along, or a file.

    Returns:
        The path or the bytes to classify, and a name without folders for the answer.

    Raises:
        RequestError: the argument is empty, a web address, or a path where none may be read.
        ImageError: the base64 is broken.
        StoreError: there is no stored image of that id.
    """
    text = image.strip()
    if not text:
        raise RequestError("`image` is empty; give an image id, base64, a data URI or a path.")
    if re.fullmatch(IMAGE_ID_PATTERN, text.lower()):
        return store.get(text.lower()).path, f"{text.lower()}.png"
    if text[:5].lower() == "data:":
        return _from_data_uri(text), "data URI"
    if _WEB_ADDRESS.match(text):
        raise RequestError("Images are not fetched from the web; send the image as base64 or as a data URI.")
    if _is_path(text):
        path = _allowed(text, folders)
        return path, path.name
    return _decode(text), "base64 image"


def _from_data_uri(text: str) -> bytes:
    """Bytes of an RFC 2397 data URI, which must be base64."""
    header, comma, body = text.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageError(
            "The data URI is not base64; it should start like data:image/png;base64, and go on with the "
            "image."
        )
    return _decode(body)


def _decode(text: str) -> bytes:
    """Bytes of base64 in the standard or the URL-safe alphabet; white space and missing padding are
    forgiven."""
    compact = "".join(text.split()).rstrip("=")
    padded = compact.translate(str.maketrans("-_", "+/")) + "=" * (-len(compact) % 4)
    try:
        return base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            "`image` is neither an image id (16 hexadecimal digits) nor a data URI nor a path, "
            "and not valid base64 either."
        ) from error


def _is_path(text: str) -> bool:
    """Whether the text can only be meant as a path: base64 has no dot, backslash, colon or tilde, and of
    the image formats only JPEG starts with a slash in base64."""
    if len(text) > _MAX_PATH or "\n" in text:
        return False
    if text.startswith("/"):
        return not text.startswith(_BASE64_OF_JPEG)
    return any(mark in text for mark in ".\\:~")


def _allowed(text: str, folders: Sequence[Path]) -> Path:
    """The file that is meant, with links followed, provided it lies inside one of `folders`."""
    if not folders:
        raise RequestError(
            "This server does not read paths; send the image as base64, as a data URI or by its image id."
        )
    name = unquote(text[7:]) if text.lower().startswith("file://") else text
    try:
        path = Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(
            "`image` looks like a path but cannot be one; check it, or send the image as base64."
        ) from error
    if not any(path.is_relative_to(folder) for folder in folders):
        raise RequestError(
            f"{path.name} lies outside the folders that may be read; "
            "move it into your home folder or send it as base64."
        )
    return path


def register(server: MCPServer, studio: Studio, queue: WorkQueue, folders: Sequence[Path] = ()) -> None:
    """Add `classify_image` to `server`; calls take their turns in `queue`. Paths are read only inside
    `folders`; with none, paths are refused.
    """
    readable = tuple(folder.resolve() for folder in folders)
    sources = "an image_id from generate_tissue_image, base64, or a data URI" + (
        ", or the path of a local file" if readable else ""
    )

    @server.tool(
        name=NAME,
        title="Classify a tissue image",
        description=DESCRIPTION,
        annotations=ToolAnnotations(
            title="Classify a tissue image",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )
    def classify_image(
        context: Context,
        image: Annotated[
            str,
            Field(
                min_length=1,
                max_length=MAX_IMAGE_CHARACTERS,
                description=f"The image: {sources}. PNG, JPEG, WebP, TIFF or BMP, each edge at least 28 px.",
            ),
        ],
    ) -> Annotated[CallToolResult, Classification]:
        source, name = load(image, studio.store, readable)
        with turn(queue, Line.CLASSIFICATION, new_deadline(), ProgressReporter(context)):
            classification = in_own_thread(lambda home: studio.classify(source, name))
        return CallToolResult(
            content=[as_text(classification)], structured_content=classification.model_dump(mode="json")
        )
