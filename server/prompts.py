"""Prompts: ready lessons that an assistant holds with the tools. All histology in them comes from the table
of tissues."""

from collections.abc import Iterable, Mapping
from typing import Annotated

from mcp import MCPError
from mcp.server import MCPServer
from mcp_types import INVALID_PARAMS, Prompt
from pydantic import Field

from pathsynth.errors import RequestError
from pathsynth.tissues import TISSUES, Tissue, by_code, named_tissue
from server.completion import Choices, one_of, tissue_codes
from tools import classify_image, generate_tissue_image

TUTOR = "tutor_me"
COMPARE = "compare_two_tissues"
QUIZ = "quiz_me"

LEVELS = ("beginner", "medical student", "pathology resident")
DEFAULT_QUESTIONS = 5
MOST_QUESTIONS = 20

_GENERATE = generate_tissue_image.NAME
_CLASSIFY = classify_image.NAME
_ANY_TISSUE = "a code such as those of pathsynth://tissues, or a name like 'fat'"

RULES = f"""\
Rules for the whole lesson:
- Pictures come only from {_GENERATE}. Never describe a picture that you were not shown; if you cannot see \
images here, say so and teach from the notes below.
- Say with every picture that it is synthetic, made for teaching, and not for diagnosis.
- A tile is verified only when the answer says so. When `verified` is false, admit openly that no verified \
tile could be made, say why (`message`), and go on without one: another seed or a larger `max_attempts` may \
help.
- Teach the architecture and the colours of a tile. Where the answer says that it is shown enlarged, or that \
its detail was made up, single nuclei and mitoses cannot be judged in it.
- Go by the notes below. Where they end, say that you are adding general knowledge.
- Refuse to interpret pictures of real patients for diagnosis or treatment. {_CLASSIFY} may be used to show \
what a classifier makes of a teaching picture; tell its confidence, and that it can be wrong."""


def choices() -> Mapping[str, Mapping[str, Choices]]:
    """What the arguments of the prompts may be completed with."""
    return {
        TUTOR: {"tissue": tissue_codes, "level": one_of(lambda: LEVELS)},
        COMPARE: {"first": tissue_codes, "second": _partners},
        QUIZ: {
            "tissue": tissue_codes,
            "questions": one_of(lambda: map(str, range(1, MOST_QUESTIONS + 1))),
        },
    }


def _partners(typed: str, chosen: Mapping[str, str]) -> Iterable[str]:
    """Tissues to compare the first one with: its look-alikes before the others, never itself."""
    offered = tissue_codes(typed, chosen)
    first = named_tissue(chosen.get("first", ""))
    if first is None:
        return offered
    alike = [confusion.code for confusion in first.glossary.confused_with]
    others = (code for code in offered if code != first.code)
    return sorted(others, key=lambda code: alike.index(code) if code in alike else len(alike))


def check(prompts: Iterable[Prompt], name: str, arguments: Mapping[str, str]) -> None:
    """Refuse in one sentence what the protocol calls wrong parameters.

    Raises:
        MCPError: there is no such prompt, or an argument is missing or unknown.
    """
    known = {prompt.name: prompt for prompt in prompts}
    if name not in known:
        raise MCPError(
            INVALID_PARAMS, f"There is no prompt named {name[:40]!r}; there are {', '.join(known)}."
        )
    expected = {argument.name: bool(argument.required) for argument in known[name].arguments or ()}
    missing = [each for each, required in expected.items() if required and not arguments.get(each)]
    if missing:
        raise MCPError(INVALID_PARAMS, f"{name} needs {' and '.join(missing)}.")
    unknown = [each for each in arguments if each not in expected]
    if unknown:
        raise MCPError(
            INVALID_PARAMS, f"{name} has no argument {unknown[0][:40]!r}; it has {', '.join(expected)}."
        )


def register(server: MCPServer) -> None:
    """Add `tutor_me`, `compare_two_tissues` and `quiz_me` to `server`."""

    @server.prompt(
        name=TUTOR,
        title="Tutor me in colorectal histology",
        description="A lesson on one of the nine tissues, or on where to begin, with synthetic tiles.",
    )
    def tutor_me(
        tissue: Annotated[
            str,
            Field(description=f"What to learn about: {_ANY_TISSUE}. Left out, the tutor suggests a start."),
        ] = "",
        level: Annotated[
            str, Field(description=f"How much I know: {', '.join(LEVELS)}, or in your own words.")
        ] = "",
    ) -> str:
        for_level = f" I am a {level.strip()[:60]}." if level.strip() else " Ask me first how much I know."
        if not tissue.strip():
            return _first_lesson(for_level)
        return _lesson(_tissue_of(tissue), for_level)

    @server.prompt(
        name=COMPARE,
        title="Compare two tissues",
        description="Two tissues side by side on synthetic tiles, and what tells them apart.",
    )
    def compare_two_tissues(
        first: Annotated[str, Field(description=f"One tissue: {_ANY_TISSUE}.")],
        second: Annotated[str, Field(description="The other tissue; its look-alikes are offered first.")],
    ) -> str:
        one, other = _tissue_of(first), _tissue_of(second)
        if one == other:
            raise MCPError(INVALID_PARAMS, f"Both tissues are {one.label}; name two different ones.")
        return _comparison(one, other)

    @server.prompt(
        name=QUIZ,
        title="Quiz me",
        description="A quiz on synthetic tiles: name the tissue, say why, hear what it was and how to tell.",
    )
    def quiz_me(
        tissue: Annotated[
            str,
            Field(
                description=f"Ask only about this tissue and its look-alikes: {_ANY_TISSUE}. "
                "Left out, about all nine."
            ),
        ] = "",
        questions: Annotated[
            str,
            Field(description=f"How many questions, 1 to {MOST_QUESTIONS}; {DEFAULT_QUESTIONS} if left out."),
        ] = "",
    ) -> str:
        return _quiz(_tissue_of(tissue) if tissue.strip() else None, _number_of_questions(questions))


def _tissue_of(words: str) -> Tissue:
    named = named_tissue(words)
    if named is not None:
        return named
    try:
        return by_code(words)
    except RequestError as error:
        raise MCPError(INVALID_PARAMS, str(error)) from error


def _number_of_questions(text: str) -> int:
    digits = text.strip() or str(DEFAULT_QUESTIONS)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 4 and 1 <= int(digits) <= MOST_QUESTIONS):
        raise MCPError(INVALID_PARAMS, f"`questions` must be a number from 1 to {MOST_QUESTIONS}.")
    return int(digits)


def _notes(tissue: Tissue) -> str:
    """What is to be taught of a tissue: what one sees, then each look-alike."""
    lines = [f"{tissue.label} ({tissue.code}): {tissue.glossary.seen}"]
    lines += [
        f"- Not to be taken for {by_code(each.code).label} ({each.code}): {each.difference}"
        for each in tissue.glossary.confused_with
    ]
    return "\n".join(lines)


def _first_lesson(for_level: str) -> str:
    names = "\n".join(f"- {tissue.label} ({tissue.code})" for tissue in TISSUES)
    return f"""\
Be my tutor in the histology of the colon and rectum, on H&E.{for_level}

Help me choose one of the nine tissues below, suggesting one that fits what I know and naming the tissues it \
is mistaken for. Then call {_GENERATE} with that tissue's code as `tissue`, let me describe the picture \
before you say what it shows, correct me kindly, and explain. The glossary of each tissue is at \
pathsynth://tissues/CODE.

{names}

{RULES}"""


def _lesson(tissue: Tissue, for_level: str) -> str:
    nearest = by_code(tissue.glossary.confused_with[0].code)
    return f"""\
Be my tutor: teach me to recognise {tissue.label} ({tissue.code}) in H&E tiles of the colon and \
rectum.{for_level}

1. Call {_GENERATE} with `tissue` {tissue.code} and `count` 2, show me the tiles, and ask what I see before \
you explain anything.
2. Answer what I said: what was right, what I missed, what I misread, by the notes below.
3. Call {_GENERATE} with `tissue` {nearest.code}, its nearest look-alike ({nearest.label}), and have me tell \
the two apart.
4. Close with three features to remember, and ask me one question without a picture.

Notes on {_notes(tissue)}

{RULES}"""


def _comparison(one: Tissue, other: Tissue) -> str:
    told_apart = [
        f"- {each.difference}"
        for tissue, partner in ((one, other), (other, one))
        for each in tissue.glossary.confused_with
        if each.code == partner.code
    ] or ["- They are not usual look-alikes; contrast what one sees in each."]
    return f"""\
Compare {one.label} ({one.code}) with {other.label} ({other.code}) for me, on H&E tiles of the colon and \
rectum.

1. Call {_GENERATE} twice, with `tissue` {one.code} and with `tissue` {other.code}, and show me both tiles.
2. Ask me which differences I see, then complete and correct my list by the notes below.
3. Lay the differences out in a table: architecture, nuclei, what lies between the cells, colour, pitfalls.
4. Call {_GENERATE} once more for one of the two with another `seed`, do not tell me which, and let me decide.

Notes
{one.label}: {one.glossary.seen}
{other.label}: {other.glossary.seen}
What tells them apart:
{chr(10).join(told_apart)}

{RULES}"""


def _quiz(focus: Tissue | None, questions: int) -> str:
    asked = TISSUES if focus is None else (focus, *(by_code(c.code) for c in focus.glossary.confused_with))
    subject = "the nine tissues" if focus is None else f"{focus.label} and its look-alikes"
    codes = ", ".join(tissue.code for tissue in asked)
    key = "\n\n".join(_notes(tissue) for tissue in asked)
    count = "1 question" if questions == 1 else f"{questions} questions"
    return f"""\
Quiz me on {subject} of the colon and rectum in H&E tiles: {count}, one at a time.

1. For each question choose one of {codes} in an order I cannot foresee, and call {_GENERATE} with it as \
`tissue` and a `seed` that you have not used yet. Ask me not to open the call, since it names the answer.
2. Show me the tile without naming its tissue, and ask which tissue it is and by which features I know.
3. Wait for my answer. Then say which tissue was asked for, name the features that show it by the key below, \
and if I was wrong, what tells my answer from it.
4. A question without a verified tile does not count: say so and choose another.
5. After the last one give my score, the pairs I confused, and what to look at again.

Key, not to be shown before I have answered:

{key}

{RULES}"""
