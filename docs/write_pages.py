"""Lays out the pages of the site in `build/pages`: what stands beside this file, the model card of the
weights with its pictures, and the reference, which the server writes itself.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp_types import Prompt, Resource, ResourceTemplate, Tool

from pathsynth.studio import Studio
from server.app import build_server

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
WEIGHTS = REPOSITORY / "weights"
PAGES = REPOSITORY / "build" / "pages"

_BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} long",
    "maxLength": "at most {:,} long",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


async def reference() -> str:
    """The page of tools, resources and prompts, as a client of a server in this process sees them."""
    async with Client(build_server(Studio())) as client:
        tools = (await client.list_tools()).tools
        resources = (await client.list_resources()).resources
        templates = (await client.list_resource_templates()).resource_templates
        prompts = (await client.list_prompts()).prompts
    parts = ["# Tools, resources, prompts", "Made from the schemas of the server.", "## Tools"]
    parts += [part for tool in tools for part in _tool(tool)]
    parts += ["## Resources", _resources(resources, templates), "## Prompts"]
    parts += [part for prompt in prompts for part in _prompt(prompt)]
    return "\n\n".join(parts) + "\n"


def _tool(tool: Tool) -> Iterable[str]:
    yield f"### `{tool.name}`"
    yield _escaped(tool.description or "")
    properties = tool.input_schema.get("properties", {})
    required = tool.input_schema.get("required", [])
    definitions = tool.input_schema.get("$defs", {})
    if properties:
        rows = [
            (
                f"`{name}`",
                _kind(schema, definitions),
                "required" if name in required else f"`{json.dumps(schema.get('default'))}`",
                _escaped(schema.get("description", "")),
            )
            for name, schema in properties.items()
        ]
        yield _table(("argument", "type", "default", "meaning"), rows)
    else:
        yield "No arguments."
    if tool.output_schema is None:
        yield "Answers with text and pictures."
        return
    definitions = tool.output_schema.get("$defs", {})
    keys = [
        (f"`{name}`", _kind(schema, definitions), _escaped(schema.get("description", "")))
        for name, schema in tool.output_schema.get("properties", {}).items()
    ]
    yield "Answers with structured content:"
    yield _table(("key", "type", "meaning"), keys)


def _kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type of a value in words, with its bounds."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        return _kind(definitions.get(name, {}), definitions)
    if "anyOf" in schema:
        return " or ".join(_kind(each, definitions) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = str(schema.get("type", "any"))
    if kind == "array" and isinstance(schema.get("items"), dict):
        kind = f"array of {_kind(schema['items'], definitions)}"
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return ", ".join([kind, *bounds])


def _resources(resources: Iterable[Resource], templates: Iterable[ResourceTemplate]) -> str:
    rows = [
        (f"`{each.uri}`", each.mime_type or "as listed", _escaped(each.description or ""))
        for each in resources
    ]
    rows += [
        (f"`{each.uri_template}`", each.mime_type or "as listed", _escaped(each.description or ""))
        for each in templates
    ]
    return _table(("address", "media type", "what it is"), rows)


def _prompt(prompt: Prompt) -> Iterable[str]:
    yield f"### `{prompt.name}`"
    yield _escaped(prompt.description or "")
    rows = [
        (f"`{each.name}`", "required" if each.required else "optional", _escaped(each.description or ""))
        for each in prompt.arguments or ()
    ]
    yield _table(("argument", "", "meaning"), rows)


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(headings)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    """Text that Markdown leaves as it is, but for code in back-ticks."""
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*").replace("](", "]\\(")


def main() -> int:
    """Write all pages anew."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for page in DOCS.glob("*.md"):
        shutil.copy2(page, PAGES / page.name)
    shutil.copytree(WEIGHTS / "reports", PAGES / "reports")
    shutil.copy2(WEIGHTS / "MODEL_CARD.md", PAGES / "model-card.md")
    (PAGES / "reference.md").write_text(anyio.run(reference), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
