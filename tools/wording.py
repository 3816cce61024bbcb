"""What a client reads when something goes wrong: one short sentence, without addresses, folders or Python."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

_PHRASES = (
    (re.compile(r"^(Input|String|Value|List) should "), "must "),
    (re.compile(r"^Field required$"), "is missing"),
    (
        re.compile(r"^Unable to parse input string as an integer, exceeded maximum size$"),
        "has too many digits",
    ),
)
_PATH = re.compile(r"""(?<![\w:/.~\\-])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'"`,;:()\[\]]+)+[/\\]?""")
_LARGEST_ECHO = 10**24


def argument_problems(error: ValidationError) -> str:
    """A validation error as one sentence: which arguments, what they must be, and short numbers that were
    given."""
    problems = error.errors(include_url=False, include_context=False)
    return "Wrong arguments: " + "; ".join(_problem(dict(problem)) for problem in problems) + "."


def _problem(problem: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "the arguments"
    text = str(problem["msg"])
    for pattern, phrase in _PHRASES:
        text = pattern.sub(phrase, text)
    given = problem["input"]
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    echo = repr(given) if is_number and _is_short(given) else ""
    return f"`{name}` {text[:1].lower()}{text[1:]}" + (f" (got {echo})" if echo else "")


def _is_short(number: float) -> bool:
    return bool(abs(number) < _LARGEST_ECHO)


def without_folders(sentence: str) -> str:
    """The sentence with every absolute path cut to its last part, so that no answer describes the server's
    disk."""
    return _PATH.sub(
        lambda found: re.split(r"[/\\]", found.group().rstrip("/\\"))[-1], _home_as_tilde(sentence)
    )


def _home_as_tilde(sentence: str) -> str:
    """The home folder first, since its name may hold spaces, where a path cannot be told from prose."""
    home = str(Path.home())
    return sentence.replace(home, "~") if len(home) > 1 else sentence
