"""`list_tissues`: the nine tissues, in short, or with what one sees in them and what they are mistaken
for."""

from typing import Annotated

from mcp.server import MCPServer
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field

from pathsynth.records import Record
from pathsynth.tissues import TISSUES, Tissue, by_code

NAME = "list_tissues"

DESCRIPTION = (
    "The nine colorectal tissues that PathSynth draws and names: code, label and synonyms; with `glossary` "
    "also what one sees under the microscope and what tells each from the tissues it is mistaken for."
)


class TissueEntry(Record):
    """One tissue. `seen` and `confused_with` (code to difference) are there when the glossary was asked
    for."""

    tissue: str
    label: str
    synonyms: list[str]
    seen: str | None = None
    confused_with: dict[str, str] | None = None


class TissueList(Record):
    """The tissues, in PathMNIST order."""

    tissues: list[TissueEntry]


def entry(tissue: Tissue, glossary: bool) -> TissueEntry:
    """What is told of one tissue."""
    short = TissueEntry(tissue=tissue.code, label=tissue.label, synonyms=list(tissue.synonyms))
    if not glossary:
        return short
    differences = {each.code: each.difference for each in tissue.glossary.confused_with}
    return short.model_copy(update={"seen": tissue.glossary.seen, "confused_with": differences})


def register(server: MCPServer) -> None:
    """Add `list_tissues` to `server`."""

    @server.tool(
        name=NAME,
        title="List the nine tissues",
        description=DESCRIPTION,
        annotations=ToolAnnotations(
            title="List the nine tissues",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )
    async def list_tissues(
        tissue: Annotated[
            str, Field(max_length=40, description="Only the tissue of this code; left out, all nine.")
        ] = "",
        glossary: Annotated[
            bool, Field(description="Also what one sees, and what it is mistaken for.")
        ] = False,
    ) -> Annotated[CallToolResult, TissueList]:
        chosen = [by_code(tissue)] if tissue.strip() else TISSUES
        answer = TissueList(tissues=[entry(each, glossary) for each in chosen])
        content = answer.model_dump(mode="json", exclude_none=True)
        return CallToolResult(
            content=[TextContent(type="text", text=answer.model_dump_json(exclude_none=True))],
            structured_content=content,
        )
