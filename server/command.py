"""The `pathsynth` command as it is installed: the command line, and `pathsynth mcp`, the same as
`pathsynth-mcp`.

Registries of MCP servers start a package by the command that bears its name, so the server must be reachable
from there. The command line itself belongs to the library, which knows nothing of the server.
"""

import sys

SERVE = "mcp"


def main() -> int:
    """Run the command line of this process and return the exit code."""
    if sys.argv[1:2] == [SERVE]:
        from server.main import main as serve

        return serve(sys.argv[2:])
    from pathsynth.cli import main as run

    return run()
