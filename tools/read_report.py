"""`read_report`: the model card, the reports and the plots that came with the weights, for clients that never
read resources."""

from pathlib import Path
from typing import Annotated, Final

from mcp.server import MCPServer
from mcp_types import ContentBlock, ResourceLink, TextContent, ToolAnnotations
from pydantic import Field

from pathsynth.errors import RequestError, WeightsError
from pathsynth.images import read_image
from pathsynth.records import Record
from pathsynth.studio import Studio
from tools.calls import as_text
from tools.pictures import SENT_AS_JPEG, fit, image_block, room_beside

NAME = "read_report"

DESCRIPTION = (
    "The model card, or a report (JSON) or plot (picture) that came with the weights: what the models were "
    "trained on, every measured figure, and limits. Without a name, the names there are."
)

REPORTS_URI: Final = "pathsynth://reports"
MODEL_CARD: Final = "model-card"
REPORT_TYPES: Final = {".json": "application/json", ".png": "image/png"}

_MODEL_CARD_FILE: Final = "MODEL_CARD.md"


class ReportFile(Record):
    """One file among the reports; `bytes` is its size."""

    name: str
    uri: str
    mime_type: str
    bytes: int


class ReportList(Record):
    """What can be asked for by name, beside the model card."""

    reports: list[ReportFile]


def report_files(weights: Path) -> tuple[Path, ...]:
    """Reports and plots that came with the weights, by name; none when there are no weights."""
    folder = weights / "reports"
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.resolve() for path in folder.iterdir() if path.suffix in REPORT_TYPES))


def listed(weights: Path) -> ReportList:
    """Name, address and size of every report and plot."""
    return ReportList(
        reports=[
            ReportFile(
                name=path.name,
                uri=f"{REPORTS_URI}/{path.name}",
                mime_type=REPORT_TYPES[path.suffix],
                bytes=path.stat().st_size,
            )
            for path in report_files(weights)
        ]
    )


def read_model_card(weights: Path) -> str:
    """The model card of the weights, in Markdown.

    Raises:
        WeightsError: they carry none.
    """
    try:
        return (weights / _MODEL_CARD_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError("These weights carry no model card; install PathSynth again.") from error


def no_such_report(name: str, weights: Path) -> str:
    """What to say of a name that is none."""
    names = [path.name for path in report_files(weights)]
    there = f"there are {', '.join(names)}" if names else "these weights carry none"
    return f"There is no report named {name[:40]!r}; {there}."


def answer(name: str, weights: Path) -> list[ContentBlock]:
    """The model card or a report as text, a plot as a picture with a link to the original, or the names.

    Raises:
        RequestError: there is nothing of this name.
        WeightsError: the weights carry no model card.
    """
    if not name:
        names = f"Ask for one of these by its name, or for {MODEL_CARD}."
        return [as_text(listed(weights)), TextContent(type="text", text=names)]
    if name == MODEL_CARD:
        return [TextContent(type="text", text=read_model_card(weights))]
    path = {path.name: path for path in report_files(weights)}.get(name)
    if path is None:
        raise RequestError(no_such_report(name, weights))
    if path.suffix == ".json":
        return [TextContent(type="text", text=path.read_text(encoding="utf-8"))]
    link = ResourceLink(
        type="resource_link",
        uri=f"{REPORTS_URI}/{name}",
        name=name,
        mime_type=REPORT_TYPES[path.suffix],
        size=path.stat().st_size,
    )
    file, media_type = fit(read_image(path), [], room_beside([link]))
    note = SENT_AS_JPEG if media_type == "image/jpeg" else f"Plot {name}."
    return [TextContent(type="text", text=note), image_block(file, media_type), link]


def register(server: MCPServer, studio: Studio) -> None:
    """Add `read_report` to `server`."""

    @server.tool(
        name=NAME,
        title="Read model card, report or plot",
        description=DESCRIPTION,
        annotations=ToolAnnotations(
            title="Read model card, report or plot",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )
    def read_report(
        name: Annotated[
            str,
            Field(max_length=80, description=f"{MODEL_CARD}, or a name as listed, e.g. generator.json."),
        ] = "",
    ) -> list[ContentBlock]:
        return answer(name.strip(), studio.weights_folder)
