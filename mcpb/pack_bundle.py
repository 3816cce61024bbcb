"""Builds the MCP bundle: `python mcpb/pack_bundle.py` writes `dist/pathsynth-VERSION.mcpb`.

A bundle holds the sources, the weights and `pyproject.toml`; uv installs the dependencies where it is opened.
The manifest beside this file is the template: its list of tools is filled in from the server itself. Needs
the Node packages of tests/conformance, as `make bundle` installs them.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import anyio
from mcp import Client

from pathsynth.studio import Studio
from server.app import build_server
from tests.conformance.node import PACKAGES, command

REPOSITORY = Path(__file__).resolve().parents[1]
MANIFEST = Path(__file__).with_name("manifest.json")
STAGE = REPOSITORY / "build" / "mcpb"
MCPB = PACKAGES / "@anthropic-ai" / "mcpb" / "dist" / "cli" / "cli.js"
HOUSES = ("pathsynth", "server", "tools", "weights")
FILES = ("pyproject.toml", "README.md", "LICENSE")


async def tools() -> list[dict[str, str]]:
    """Names of the server's tools, each with the first sentence of its description."""
    async with Client(build_server(Studio())) as client:
        listed = (await client.list_tools()).tools
    return [{"name": tool.name, "description": (tool.description or "").split(". ")[0]} for tool in listed]


def stage() -> None:
    """Lay out in `STAGE` what the bundle holds."""
    shutil.rmtree(STAGE, ignore_errors=True)
    STAGE.mkdir(parents=True)
    for name in FILES:
        shutil.copy2(REPOSITORY / name, STAGE / name)
    for name in HOUSES:
        shutil.copytree(
            REPOSITORY / name, STAGE / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        )
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8")) | {"tools": anyio.run(tools)}
    (STAGE / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Stage, validate, pack. Returns the exit code."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bundle = REPOSITORY / "dist" / f"{project['name']}-{project['version']}.mcpb"
    bundle.parent.mkdir(exist_ok=True)
    bundle.unlink(missing_ok=True)
    stage()
    for arguments in (["validate", str(STAGE / "manifest.json")], ["pack", str(STAGE), str(bundle)]):
        done = subprocess.run(command(MCPB, *arguments), check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
