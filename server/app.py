"""The MCP server: tools, resources and prompts over one `Studio`, and the one place where errors become words
for the client."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp_types import CallToolResult, GetPromptResult, InputRequiredResult, ResourceTemplate, Tool
from pydantic import ValidationError

import tools
from pathsynth import __version__
from pathsynth.errors import PathSynthError
from pathsynth.studio import Studio
from server import completion, prompts, resources
from tools import generate_tissue_image
from tools.queue import WorkQueue
from tools.wording import argument_problems, without_folders

if TYPE_CHECKING:
    from server.metrics import Metrics

INSTRUCTIONS = (
    "PathSynth makes synthetic H&E tiles of the nine colorectal tissues of PathMNIST for teaching, and shows "
    "only tiles that a classifier verified. generate_tissue_image draws tiles, view_image shows stored ones "
    "again, classify_image names the tissue in an image, list_tissues explains the nine, evaluate_model says "
    "how good generator and classifier are, read_report gives model card, reports and plots. Tell the reader "
    "that tiles are synthetic and not for diagnosis; when `verified` is false, say so. Tiles have colours, "
    "density and grain of the tissue, its fibres, and glands of mucosa in outline, but seldom a lumen, the "
    "wall of a gland or a closed fat cell: point out such things only where you see them."
)


class PathSynthServer(MCPServer):
    """An MCP server whose failed calls answer in one sentence that the caller can act on; `queue` is where
    its tools wait for the models."""

    queue: WorkQueue

    metrics: "Metrics | None" = None

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool. A `PathSynthError` keeps its sentence, wrong arguments are named shortly, and a crash
        says only that there was one; no answer names a folder of the server's disk.

        Raises:
            ToolError: the call failed in a way that the caller can act on.
            UnexpectedToolError: the tool crashed; `__cause__` is what it raised.
        """
        if self.metrics is None:
            return await self._call_in_words(name, arguments, context)
        # The name is the client's: one that is no tool must not become a time series.
        is_known = name in {tool.name for tool in await self.list_tools()}
        with self.metrics.call(name if is_known else "unknown"):
            answer = await self._call_in_words(name, arguments, context)
        if name == generate_tissue_image.NAME:
            self.metrics.count_tiles(answer)
        return answer

    async def _call_in_words(
        self, name: str, arguments: dict[str, Any], context: Context | None
    ) -> CallToolResult | InputRequiredResult:
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError as error:
            if isinstance(error.__cause__, PathSynthError):
                raise ToolError(without_folders(str(error.__cause__))) from error.__cause__
            raise UnexpectedToolError(
                f"{name} failed unexpectedly; the server's log says more."
            ) from error.__cause__
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(argument_problems(error.__cause__)) from error.__cause__
            raise

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """Render a prompt. Raises MCPError with one sentence when its name or its arguments are wrong."""
        prompts.check(await self.list_prompts(), name, arguments or {})
        return await super().get_prompt(name, arguments, context)

    async def list_tools(self) -> list[Tool]:
        """The tools, without the titles that their schemas repeat from the names: every client pays for each
        byte of this list.
        """
        return [
            tool.model_copy(update={"input_schema": _without_titles(tool.input_schema)})
            for tool in await super().list_tools()
        ]

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """The templates; one whose resources differ in media type names none, as the protocol asks."""
        return [
            template.model_copy(update={"mime_type": None})
            if template.mime_type == resources.ANY_TYPE
            else template
            for template in await super().list_resource_templates()
        ]


def _without_titles(schema: dict[str, Any]) -> dict[str, Any]:
    arguments = {
        name: {key: value for key, value in argument.items() if key != "title"}
        for name, argument in schema["properties"].items()
    }
    return {key: value for key, value in schema.items() if key != "title"} | {"properties": arguments}


def build_server(
    studio: Studio, image_folders: Sequence[Path] = (), metrics: "Metrics | None" = None
) -> PathSynthServer:
    """An MCP server with every tool, resource and prompt over `studio`; nothing is loaded until a tool is
    called.

    Image paths are read only inside `image_folders`; with none, as befits every transport but stdio, paths
    are refused. Calls are counted in `metrics`.
    """
    server = PathSynthServer(
        "pathsynth",
        title="PathSynth",
        description="Verified synthetic colorectal histopathology tiles from a description.",
        instructions=INSTRUCTIONS,
        version=__version__,
        log_level="WARNING",
    )
    server.metrics = metrics
    server.queue = WorkQueue()
    tools.register(server, studio, server.queue, image_folders)
    resources.register(server, studio)
    prompts.register(server)
    completion.register(server, {**resources.choices(studio), **prompts.choices()})
    return server
