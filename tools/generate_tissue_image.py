"""`generate_tissue_image`: verified synthetic tiles from a description.

The pictures are what the model must see, and several clients drop images that stand beside structured
content: the answer is compact JSON text, a note, PNG images and resource links, and no structured content.
"""

import base64
from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import ContentBlock, ImageContent, ResourceLink, TextContent, ToolAnnotations
from pydantic import Field

from pathsynth.errors import RequestError
from pathsynth.records import MAX_DESCRIPTION, MAX_SEED, AttemptRecord, GenerationResult, TileRecord
from pathsynth.store import ImageStore
from pathsynth.studio import GenerationRequest, Studio
from pathsynth.tissues import TISSUES, by_code
from tools.calls import TIME_BUDGET, ProgressReporter, as_text, check_cancelled
from tools.pictures import SHOWN_EDGE, show

NAME = "generate_tissue_image"
MAX_TILES = 9
MAX_TRIES = 100

DESCRIPTION = (
    "Make synthetic H&E histopathology tiles of colorectal tissue. Every tile shown was verified: a "
    "classifier names the asked tissue with at least `min_confidence`; other proposals are discarded and "
    "made anew. Returns JSON (tissue, verified, tiles with image_id and confidence, rejected attempts), the "
    "pictures, and links to the stored originals. When fewer tiles than asked could be verified, `verified` "
    "is false and `message` says why. For teaching, not for diagnosis."
)

_TISSUE_LIST = ", ".join(f"{tissue.code} {tissue.label}" for tissue in TISSUES)


def image_uri(image_id: str) -> str:
    """Address of a stored image among the server's resources."""
    return f"pathsynth://images/{image_id}"


def answer(result: GenerationResult, store: ImageStore) -> list[ContentBlock]:
    """The result as content blocks: JSON, a note for the reader, the pictures, a link to each stored tile."""
    if not result.tiles:
        return [as_text(result), TextContent(type="text", text=_NOTHING_VERIFIED)]
    stored = [store.get(tile.image_id) for tile in result.tiles]
    captions = [
        f"{number} {tile.tissue} {tile.confidence:.2f}" for number, tile in enumerate(result.tiles, start=1)
    ]
    pictures = show([image.pixels() for image in stored], captions, result.tiles)
    images = [
        ImageContent(type="image", data=base64.b64encode(file).decode("ascii"), mime_type="image/png")
        for file in pictures.files
    ]
    links = [_link(tile, image.path.stat().st_size) for tile, image in zip(result.tiles, stored, strict=True)]
    note = _note(result, enlarged=pictures.enlarged, sheet=pictures.sheet)
    return [as_text(result), TextContent(type="text", text=note), *images, *links]


_NOTHING_VERIFIED = (
    "No picture: no proposal was verified, and nothing unverified is shown. Try another seed, a larger "
    "max_attempts, or a lower min_confidence."
)


def _note(result: GenerationResult, *, enlarged: bool, sheet: bool) -> str:
    """What the pictures are and are not, in plain sentences."""
    kept = len(result.tiles)
    tiles = "1 verified synthetic tile" if kept == 1 else f"{kept} verified synthetic tiles"
    sentences = [f"{tiles} of {result.label}; for teaching, not for diagnosis."]
    if kept < result.count:
        sentences.append(f"{result.count} were asked for.")
    if enlarged:
        native = min(tile.size for tile in result.tiles)
        size = "" if sheet else f" to {SHOWN_EDGE} px"
        sentences.append(
            f"Shown enlarged (Lanczos){size} from native tiles of {native} px: there is no finer detail in "
            f"them."
        )
    if sheet:
        sentences.append(
            f"The {kept} tiles share one contact sheet, numbered from left to right in the order of `tiles`."
        )
    return " ".join(sentences)


def _link(tile: TileRecord, file_size: int) -> ResourceLink:
    """Link to the stored original of one tile; `file_size` in bytes."""
    return ResourceLink(
        type="resource_link",
        uri=image_uri(tile.image_id),
        name=f"{tile.image_id}.png",
        title=f"Synthetic {tile.label} tile, {tile.size} px",
        mime_type="image/png",
        size=file_size,
    )


def register(server: MCPServer, studio: Studio) -> None:
    """Add `generate_tissue_image` to `server`."""

    @server.tool(
        name=NAME,
        title="Generate verified tissue tiles",
        description=DESCRIPTION,
        annotations=ToolAnnotations(
            title="Generate verified tissue tiles",
            read_only_hint=False,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )
    def generate_tissue_image(
        context: Context,
        description: Annotated[
            str,
            Field(
                max_length=MAX_DESCRIPTION,
                description="What to show, in words, e.g. 'crowded irregular glands of a colon cancer'. May "
                "be left out when `tissue` is given.",
            ),
        ] = "",
        tissue: Annotated[
            str,
            Field(
                max_length=40,
                description=f"Tissue code: {_TISSUE_LIST}. Left out, it is worked out from the description; "
                "when two tissues are close, the answer names both and asks to choose.",
            ),
        ] = "",
        count: Annotated[int, Field(ge=1, le=MAX_TILES, description="How many verified tiles.")] = 1,
        seed: Annotated[
            int,
            Field(
                ge=0,
                le=MAX_SEED,
                description="The same request with the same seed gives the same tiles; change it for others.",
            ),
        ] = 0,
        size: Annotated[
            Literal[28, 224],
            Field(description=f"Edge of the tiles in px; pictures are shown at {SHOWN_EDGE} px or more."),
        ] = 224,
        min_confidence: Annotated[
            float,
            Field(
                ge=0,
                le=1,
                description="Calibrated probability of the asked tissue that a tile needs to be verified.",
            ),
        ] = 0.9,
        max_attempts: Annotated[
            int,
            Field(
                ge=1,
                le=MAX_TRIES,
                description="Proposals to make at most, verified or not, before giving up.",
            ),
        ] = 30,
    ) -> list[ContentBlock]:
        words = description.strip()
        code = tissue.strip()
        if not words and not code:
            raise RequestError("Give a description, a tissue code, or both; both were empty.")
        request = GenerationRequest.checked(
            description=words or by_code(code).prompt,
            tissue=code or None,
            count=count,
            seed=seed,
            size=size,
            min_confidence=min_confidence,
            max_attempts=max_attempts,
            time_budget=TIME_BUDGET,
        )
        progress = ProgressReporter(context)
        progress(0, max_attempts, "Getting the models ready")
        attempts: list[AttemptRecord] = []

        def on_attempt(attempt: AttemptRecord, _: int) -> None:
            attempts.append(attempt)
            kept = sum(each.verified for each in attempts)
            verdict = "verified" if attempt.verified else "discarded"
            progress(
                len(attempts),
                max_attempts,
                f"Attempt {len(attempts)}: {attempt.predicted} {attempt.confidence:.2f}, {verdict} ({kept} "
                f"of {count})",
            )

        result = studio.generate(request, on_attempt=on_attempt, check_cancelled=check_cancelled)
        return answer(result, studio.store)
