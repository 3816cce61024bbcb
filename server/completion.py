"""What a client may offer while the reader types an argument: tissues, image ids, names of reports.

MCP has one completion handler for the whole server; `resources` and `prompts` say which choices each of their
arguments has.
"""

from collections.abc import Callable, Iterable, Mapping

from mcp import MCPError
from mcp.server import MCPServer
from mcp_types import (
    INVALID_PARAMS,
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    ResourceTemplateReference,
)

from pathsynth.tissues import TISSUES

Choices = Callable[[str, Mapping[str, str]], Iterable[str]]
"""From what was typed so far, and the arguments chosen before, to the values on offer."""

MOST_VALUES = 100
"""The protocol allows no more in one answer."""


def tissue_codes(typed: str, chosen: Mapping[str, str]) -> Iterable[str]:
    """Codes of the tissues that have a name starting with `typed`: code, label or synonym."""
    start = typed.strip().casefold()
    for tissue in TISSUES:
        if any(name.casefold().startswith(start) for name in (tissue.code, tissue.label, *tissue.synonyms)):
            yield tissue.code


def one_of(values: Callable[[], Iterable[str]]) -> Choices:
    """The values that start with what was typed, asked for anew each time; capitals do not matter."""

    def choices(typed: str, chosen: Mapping[str, str]) -> Iterable[str]:
        start = typed.strip().casefold()
        return (value for value in values() if value.casefold().startswith(start))

    return choices


def register(server: MCPServer, choices: Mapping[str, Mapping[str, Choices]]) -> None:
    """Answer completion requests on `server` from `choices`: prompt name or URI template to argument to
    values."""

    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion:
        name = ref.name if isinstance(ref, PromptReference) else ref.uri
        arguments = choices.get(name)
        if arguments is None or argument.name not in arguments:
            raise MCPError(
                INVALID_PARAMS, f"Nothing is known to complete {argument.name[:40]!r} of {name[:80]!r} with."
            )
        chosen = (context.arguments if context is not None else None) or {}
        values = list(arguments[argument.name](argument.value, chosen))
        return Completion(values=values[:MOST_VALUES], total=len(values), has_more=len(values) > MOST_VALUES)

    server.completion()(complete)
