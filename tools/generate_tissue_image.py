"""`generate_tissue_image`: verified synthetic tiles from a description.

The pictures are what the model must see, and several clients drop images that stand beside structured
content: the answer is compact JSON text, a note, PNG images and resource links, and no structured content.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import ContentBlock, ResourceLink, TextContent, ToolAnnotations
from pydantic import Field

from pathsynth.errors import OutOfTimeError, RequestError
from pathsynth.records import MAX_DESCRIPTION, MAX_SEED, AttemptRecord, GenerationResult, TileRecord
from pathsynth.store import ImageStore
from pathsynth.studio import GenerationRequest, Studio
from pathsynth.tissues import TISSUES, by_code
from tools.calls import ProgressReporter, as_text, check_cancelled, new_deadline, seconds_left, turn
from tools.pictures import (
    MAX_REJECTED,
    REJECTED_BYTES,
    SENT_AS_JPEG,
    SHOWN_EDGE,
    Pictures,
    Tile,
    image_block,
    room_beside,
    show,
    show_rejected,
)
from tools.queue import Line, WorkQueue
from tools.threads import in_own_thread

NAME = "generate_tissue_image"
MAX_TILES = 9
MAX_TRIES = 100

_DRAWN_ANSWERS = 16
"""Answers that are kept as they were sent: drawing nine tiles takes several times as long as finding them."""

DESCRIPTION = (
    "Make synthetic H&E histopathology tiles of colorectal tissue. Every tile shown was verified: a "
    "classifier names the asked tissue with at least `min_confidence`; other proposals are discarded and "
    "made anew. Returns JSON (tissue, verified, tiles with image_id and confidence, rejected attempts), the "
    "pictures, and links to the stored originals. When fewer tiles than asked could be verified, `verified` "
    "is false and `message` says why. A call works for 40 s at most: when `can_continue` is true, call again "
    "with `continue_request`; nothing is made twice. For teaching, not for diagnosis."
)

_TISSUE_LIST = ", ".join(f"{tissue.code} {tissue.label}" for tissue in TISSUES)


def image_uri(image_id: str) -> str:
    """Address of a stored image among the server's resources."""
    return f"pathsynth://images/{image_id}"


Rejected = Sequence[tuple[AttemptRecord, Tile]]


def answer(result: GenerationResult, store: ImageStore, rejected: Rejected = ()) -> list[ContentBlock]:
    """The result as content blocks: JSON, a note for the reader, the pictures, a link to each stored tile;
    with `rejected` attempts and their tiles (28, 28, 3), also one picture of these.
    """
    stored = [store.get(tile.image_id) for tile in result.tiles]
    links = [link(tile, image.path.stat().st_size) for tile, image in zip(result.tiles, stored, strict=True)]
    shown = rejected[:MAX_REJECTED]
    room = room_beside([as_text(result), *links]) - (REJECTED_BYTES if shown else 0)
    images, sentences = [], [_NOTHING_VERIFIED]
    if stored:
        captions = [
            f"{number} {tile.tissue} {tile.confidence:.2f}"
            for number, tile in enumerate(result.tiles, start=1)
        ]
        pictures = show([image.pixels() for image in stored], captions, result.tiles, room)
        images = [image_block(file, pictures.media_type) for file in pictures.files]
        sentences = _sentences(result, pictures)
    if shown:
        file = show_rejected([tile for _, tile in shown], [_caption(attempt) for attempt, _ in shown])
        images.append(image_block(file, "image/jpeg"))
        sentences.append(_about_rejected(len(shown), len(result.rejected), result.label))
    if result.can_continue:
        sentences.append(
            f'The time of this call ran out: call again with continue_request="{result.request_id}" to go on.'
        )
    return [as_text(result), TextContent(type="text", text=" ".join(sentences)), *images, *links]


_NOTHING_VERIFIED = (
    "No picture: no proposal was verified, and nothing unverified is shown as if it were. Go on with a "
    "larger max_attempts, or try another seed or a lower min_confidence."
)


def _sentences(result: GenerationResult, pictures: Pictures) -> list[str]:
    """What the pictures are and are not, in plain sentences."""
    kept = len(result.tiles)
    tiles = "1 verified synthetic tile" if kept == 1 else f"{kept} verified synthetic tiles"
    sentences = [f"{tiles} of {result.label}; for teaching, not for diagnosis."]
    if kept < result.count:
        sentences.append(f"{result.count} were asked for.")
    if pictures.enlarged:
        native = min(tile.size for tile in result.tiles)
        size = "" if pictures.sheet else f" to {SHOWN_EDGE} px"
        sentences.append(
            f"Shown enlarged (Lanczos){size} from native tiles of {native} px: there is no finer detail in "
            f"them."
        )
    if any(tile.detailed for tile in result.tiles):
        sentences.append("Verified at 28 px; what is finer was made up to fit, and no single nucleus counts.")
    if pictures.sheet:
        sentences.append(
            f"The {kept} tiles share one contact sheet, numbered from left to right in the order of `tiles`."
        )
    if pictures.media_type == "image/jpeg":
        sentences.append(SENT_AS_JPEG)
    return sentences


def _caption(attempt: AttemptRecord) -> str:
    """What the validator saw in a rejected tile, short enough for a thumbnail."""
    reasons = {"low confidence": " unsure", "near copy": " copy", "out of distribution": " odd"}
    return f"{attempt.predicted} {attempt.confidence:.2f}{reasons.get(attempt.rejected_for or '', '')}"


def _about_rejected(shown: int, all_rejected: int, label: str) -> str:
    some = f"the first {shown} of {all_rejected} rejected" if shown < all_rejected else f"{shown} rejected"
    tiles = "tile" if shown == all_rejected == 1 else "tiles"
    return (
        f"The last picture, in red frames, shows {some} {tiles}, NOT verified as {label}, each with what the "
        "classifier saw instead and its confidence (unsure: the right tissue below min_confidence; odd: "
        "unlike any H&E tile; copy: too near to a training tile)."
    )


def link(tile: TileRecord, file_size: int) -> ResourceLink:
    """Link to the stored original of one tile; `file_size` in bytes."""
    return ResourceLink(
        type="resource_link",
        uri=image_uri(tile.image_id),
        name=f"{tile.image_id}.png",
        title=f"Synthetic {tile.label} tile, {tile.size} px",
        mime_type="image/png",
        size=file_size,
    )


def register(server: MCPServer, studio: Studio, queue: WorkQueue) -> None:
    """Add `generate_tissue_image` to `server`; calls take their turns in `queue`."""

    @lru_cache(_DRAWN_ANSWERS)
    def drawn(result_json: str, include_rejected: bool) -> tuple[ContentBlock, ...]:
        result = GenerationResult.model_validate_json(result_json)
        rejected = studio.rejected_tiles(result) if include_rejected else ()
        return tuple(answer(result, studio.store, rejected))

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
        include_rejected: Annotated[
            bool,
            Field(
                description="Also show thumbnails of rejected proposals, unverified, and what was seen in "
                "them."
            ),
        ] = False,
        continue_request: Annotated[
            str,
            Field(
                max_length=40,
                description="`request_id` of an answer that fell short: go on with that request, up to a "
                "larger max_attempts if given; of the rest only include_rejected counts.",
            ),
        ] = "",
    ) -> list[ContentBlock]:
        deadline = new_deadline()
        progress = ProgressReporter(context)
        if continue_request.strip():
            request = studio.remembered_request(continue_request.strip().lower(), max_attempts)
        else:
            words, code = description.strip(), tissue.strip() and by_code(tissue).code
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
            )

        def on_attempt(attempt: AttemptRecord, kept: int) -> None:
            number = (attempt.seed - request.seed) % (MAX_SEED + 1) + 1
            verdict = "verified" if attempt.verified else "discarded"
            progress(
                number,
                request.max_attempts,
                f"Attempt {number}: {attempt.predicted} {attempt.confidence:.2f}, {verdict} ({kept} of "
                f"{request.count})",
            )

        result = studio.recall(request)
        if result is None or result.can_continue:
            try:
                with turn(queue, Line.GENERATION, deadline, progress, request.max_attempts):
                    progress.note(request.max_attempts, "Getting the models ready")
                    limited = request.model_copy(update={"time_budget": seconds_left(deadline)})
                    result = in_own_thread(
                        lambda home: studio.generate(
                            limited, on_attempt=home(on_attempt), check_cancelled=home(check_cancelled)
                        )
                    )
            except OutOfTimeError:
                if result is None:
                    raise
        return list(drawn(result.model_dump_json(), include_rejected))
