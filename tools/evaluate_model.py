"""`evaluate_model`: how good the validator and the generator are, measured now or read from the committed
report."""

from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ContentBlock, ResourceLink, TextContent, ToolAnnotations
from pydantic import Field

from pathsynth.data import COUNTS
from pathsynth.errors import DataError, OutOfTimeError
from pathsynth.progress import CheckCancelled, Progress
from pathsynth.records import MAX_SEED, Report
from pathsynth.studio import Studio
from pathsynth.tissues import TISSUES
from tools.calls import ProgressReporter, as_text, check_cancelled, new_deadline, seconds_left, turn
from tools.queue import Line, WorkQueue
from tools.threads import in_own_thread
from tools.wording import without_folders

NAME = "evaluate_model"
MAX_PER_CLASS = 20

_FIGURES_SECONDS = 5.0
"""What of the time budget is kept for the figures themselves, above all the bootstrap."""

_LEAST_SECONDS = 1.0

DESCRIPTION = (
    "Accuracy, macro precision, recall and F1, the figures of each tissue and the 9 x 9 confusion matrix "
    "(rows: true or asked tissue, in PathMNIST order). `source` says whether they were measured now or come "
    "from the committed report, which stands in when the data is absent. A call measures for 40 s at most "
    "and returns the figures of the images done by then: `n`, `split` and `ci95` say how far to trust them."
)


def evaluate(
    studio: Studio,
    what: Literal["validator", "generator"],
    split: Literal["val", "test"],
    per_class: int,
    seed: int,
    progress: Progress,
    check_cancelled: CheckCancelled,
    seconds: float,
) -> tuple[Report, str]:
    """Measure for at most `seconds`, or take the committed report when the data is absent or the time does
    not suffice for a first figure.

    Returns:
        The report, and one sentence on why it is the committed one or of fewer images than asked; empty
        otherwise.
    """
    try:
        if what == "validator":
            report = studio.evaluate_validator(split, progress, time_budget=seconds).headline_figures()
            everything = COUNTS[split]
        else:
            report = studio.evaluate_generator(
                per_class, seed, progress, check_cancelled=check_cancelled, time_budget=seconds
            )
            everything = per_class * len(TISSUES)
    except (DataError, OutOfTimeError) as error:
        committed = studio.committed_report(report_name(what, split)).headline_figures()
        return committed, f"These are the figures of the committed report. {without_folders(str(error))}"
    if report.n < everything:
        return report, f"The time of the call sufficed for {report.n:,} of {everything:,} images."
    return report, ""


def report_name(what: Literal["validator", "generator"], split: Literal["val", "test"]) -> str:
    """Name of the committed report."""
    return f"validator-{split}" if what == "validator" else what


def _links(studio: Studio, name: str) -> list[ResourceLink]:
    """Links to the plots of the committed report, among the server's resources."""
    return [
        ResourceLink(
            type="resource_link",
            uri=f"pathsynth://reports/{plot}",
            name=plot,
            title=f"{plot.removesuffix('.png')}, plot of the committed report",
            mime_type="image/png",
        )
        for plot in studio.committed_plots(name)
    ]


def register(server: MCPServer, studio: Studio, queue: WorkQueue) -> None:
    """Add `evaluate_model` to `server`; calls take their turns in `queue`."""

    @server.tool(
        name=NAME,
        title="Evaluate validator or generator",
        description=DESCRIPTION,
        annotations=ToolAnnotations(
            title="Evaluate validator or generator",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )
    def evaluate_model(
        context: Context,
        what: Annotated[
            Literal["validator", "generator"],
            Field(
                description="validator: the classifier on real PathMNIST tiles. generator: its first, "
                "unfiltered tiles, named by the validator."
            ),
        ] = "validator",
        split: Annotated[
            Literal["val", "test"],
            Field(
                description="Validator only. val: same patients as training; test: other patients and centre."
            ),
        ] = "val",
        per_class: Annotated[
            int,
            Field(ge=1, le=MAX_PER_CLASS, description="Generator only: tiles for each of the nine tissues."),
        ] = 5,
        seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="Generator only: first seed.")] = 0,
    ) -> Annotated[CallToolResult, Report]:
        deadline = new_deadline()
        progress = ProgressReporter(context)
        line = Line.EVALUATION if what == "validator" else Line.GENERATION
        with turn(queue, line, deadline, progress):
            seconds = max(_LEAST_SECONDS, seconds_left(deadline) - _FIGURES_SECONDS)
            report, reason = in_own_thread(
                lambda home: evaluate(
                    studio, what, split, per_class, seed, home(progress), home(check_cancelled), seconds
                )
            )
        content: list[ContentBlock] = [as_text(report)]
        if reason:
            content.append(TextContent(type="text", text=reason))
        content += _links(studio, report_name(what, split))
        return CallToolResult(content=content, structured_content=report.model_dump(mode="json"))
