"""The MCP tools of PathSynth, one file each: arguments, wording and the shape of the answer; the science is
in `pathsynth`.

Each tool file has a `register(server, studio, ...)` that adds its tool to an MCP server. A tool raises
`PathSynthError` as the library does; the server turns it into the sentence the client reads.
"""

from collections.abc import Sequence
from pathlib import Path

from mcp.server import MCPServer

from pathsynth.studio import Studio
from tools import (
    classify_image,
    evaluate_model,
    generate_tissue_image,
    list_tissues,
    read_report,
    view_image,
)
from tools.queue import WorkQueue


def register(server: MCPServer, studio: Studio, queue: WorkQueue, image_folders: Sequence[Path] = ()) -> None:
    """Add every tool to `server`; those that use a model take their turns in `queue`. Image paths are read
    only inside `image_folders`; with none, paths are refused.
    """
    generate_tissue_image.register(server, studio, queue)
    classify_image.register(server, studio, queue, image_folders)
    evaluate_model.register(server, studio, queue)
    list_tissues.register(server)
    view_image.register(server, studio)
    read_report.register(server, studio)
