"""`evaluate_model`: how good the validator and the generator are, measured now or read from the committed
report."""

import time
from collections.abc import Callable
from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ContentBlock, TextContent, ToolAnnotations
from pydantic import Field

from pathsynth.errors import DataError
from pathsynth.records import MAX_SEED, Report
from pathsynth.studio import Studio
from tools.calls import TIME_BUDGET, ProgressReporter, as_text, check_cancelled
from tools.wording import without_folders

NAME = "evaluate_model"
MAX_PER_CLASS = 20

DESCRIPTION = (
    "Accuracy, macro precision, recall and F1, the figures of each tissue and the 9 x 9 confusion matrix "
    "(rows: true or asked tissue, in PathMNIST order). `source` says whether they were measured now or come "
    "from the committed report, which stands in when the data is absent or 40 s do not suffice. `n`, `split` "
    "and `ci95` say how far to trust them."
)


class OutOfTimeError(Exception):
    """A measurement did not end within the time budget of a call."""


def evaluate(
    studio: Studio,
    what: Literal["validator", "generator"],
    split: Literal["val", "test"],
    per_class: int,
    seed: int,
    progress: Callable[[int, int, str], None],
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Report, str | None]:
    """Measure, or take the committed report when the data is absent or the time budget does not suffice.

    Returns:
        The report, and one sentence on why it is the committed one; None when it was measured.
    """
    deadline = clock() + TIME_BUDGET

    def within_budget() -> None:
        check_cancelled()
        if clock() > deadline:
            raise OutOfTimeError

    def timed_progress(done: int, total: int, message: str) -> None:
        within_budget()
        progress(done, total, message)

    committed = f"validator-{split}" if what == "validator" else "generator"
    try:
        if what == "validator":
            return studio.evaluate_validator(split, timed_progress).headline_figures(), None
        return studio.evaluate_generator(per_class, seed, timed_progress, check_cancelled=within_budget), None
    except DataError as error:
        reason = str(error)
    except OutOfTimeError:
        reason = (
            f"A measurement did not end within the {TIME_BUDGET:.0f} s of a call; "
            f"`pathsynth evaluate {what}` has no such limit."
        )
    return studio.committed_report(committed).headline_figures(), reason


def register(server: MCPServer, studio: Studio) -> None:
    """Add `evaluate_model` to `server`."""

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
        report, reason = evaluate(studio, what, split, per_class, seed, ProgressReporter(context))
        content: list[ContentBlock] = [as_text(report)]
        if reason is not None:
            content.append(
                TextContent(
                    type="text",
                    text=f"These are the figures of the committed report. {without_folders(reason)}",
                )
            )
        return CallToolResult(content=content, structured_content=report.model_dump(mode="json"))
