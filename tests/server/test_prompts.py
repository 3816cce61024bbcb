"""The lessons a client offers, in both protocol eras."""

import pytest
from mcp import Client, MCPError
from mcp_types import INVALID_PARAMS, PromptReference, TextContent

from pathsynth.tissues import CODES, TISSUES, by_code

pytestmark = pytest.mark.anyio

PAIRS = [(tissue.code, each.code) for tissue in TISSUES for each in tissue.glossary.confused_with]


async def lesson(client: Client, name: str, **arguments: str) -> str:
    (message,) = (await client.get_prompt(name, arguments)).messages
    assert message.role == "user"
    assert isinstance(message.content, TextContent)
    return message.content.text


async def complete(client: Client, prompt: str, argument: str, typed: str, **chosen: str) -> list[str]:
    completed = await client.complete(
        PromptReference(name=prompt), {"name": argument, "value": typed}, context_arguments=chosen
    )
    return completed.completion.values


async def test_the_three_lessons_are_listed_with_every_argument_described(client: Client) -> None:
    prompts = {prompt.name: prompt for prompt in (await client.list_prompts()).prompts}

    assert {
        name: {argument.name: argument.required for argument in prompt.arguments or ()}
        for name, prompt in prompts.items()
    } == {
        "tutor_me": {"tissue": False, "level": False},
        "compare_two_tissues": {"first": True, "second": True},
        "quiz_me": {"tissue": False, "questions": False},
    }
    for prompt in prompts.values():
        assert prompt.title
        assert prompt.description
        assert all(argument.description for argument in prompt.arguments or ())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tutor_me", {}),
        ("tutor_me", {"tissue": "NORM"}),
        ("compare_two_tissues", {"first": "MUS", "second": "STR"}),
        ("quiz_me", {}),
        ("quiz_me", {"tissue": "LYM"}),
    ],
)
async def test_every_lesson_is_held_with_the_tools_and_is_honest_about_them(
    client: Client, name: str, arguments: dict[str, str]
) -> None:
    text = await lesson(client, name, **arguments)

    tools = {tool.name for tool in (await client.list_tools()).tools}
    for word in ("generate_tissue_image", "classify_image"):
        assert word in tools
        assert word in text
    assert "synthetic" in text
    assert "not for diagnosis" in text
    assert "When `verified` is false, admit openly" in text
    assert "{" not in text


@pytest.mark.parametrize("code", CODES)
async def test_a_lesson_on_a_tissue_holds_its_whole_glossary(client: Client, code: str) -> None:
    text = await lesson(client, "tutor_me", tissue=code.lower(), level="beginner")

    glossary = by_code(code).glossary
    assert glossary.seen in text
    assert [each.code for each in glossary.confused_with if each.difference not in text] == []
    assert "I am a beginner." in text


async def test_a_lesson_may_be_asked_for_by_a_name(client: Client) -> None:
    assert await lesson(client, "tutor_me", tissue=" Fat cells ") == await lesson(
        client, "tutor_me", tissue=by_code("ADI").code
    )


async def test_a_lesson_without_a_tissue_offers_all_nine(client: Client) -> None:
    text = await lesson(client, "tutor_me")

    assert [tissue.label for tissue in TISSUES if f"{tissue.label} ({tissue.code})" not in text] == []


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_a_comparison_of_look_alikes_says_what_tells_them_apart(
    client: Client, one: str, other: str
) -> None:
    text = await lesson(client, "compare_two_tissues", first=one, second=other)

    (difference,) = [each.difference for each in by_code(one).glossary.confused_with if each.code == other]
    assert difference in text
    assert by_code(one).glossary.seen in text
    assert by_code(other).glossary.seen in text


async def test_a_comparison_of_unlike_tissues_says_that_they_are_no_look_alikes(client: Client) -> None:
    text = await lesson(client, "compare_two_tissues", first="BACK", second="TUM")

    assert "not usual look-alikes" in text


async def test_a_quiz_on_a_tissue_asks_about_it_and_its_look_alikes_only(client: Client) -> None:
    text = await lesson(client, "quiz_me", tissue="MUS", questions="1")

    asked = {"MUS", *(each.code for each in by_code("MUS").glossary.confused_with)}
    assert {code for code in CODES if by_code(code).glossary.seen in text} == asked
    assert "1 question," in text


async def test_a_quiz_on_everything_has_five_questions_and_the_key_of_all_nine(client: Client) -> None:
    text = await lesson(client, "quiz_me")

    assert "5 questions," in text
    assert [tissue.code for tissue in TISSUES if tissue.glossary.seen not in text] == []


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("teach_me", {}, "quiz_me"),
        ("tutor_me", {"tissue": "liver"}, "TUM"),
        ("tutor_me", {"organ": "colon"}, "level"),
        ("compare_two_tissues", {}, "first and second"),
        ("compare_two_tissues", {"first": "MUS"}, "second"),
        ("compare_two_tissues", {"first": "MUS", "second": "muscle"}, "smooth muscle"),
        ("quiz_me", {"questions": "0"}, "1 to 20"),
        ("quiz_me", {"questions": "21"}, "1 to 20"),
        ("quiz_me", {"questions": "many"}, "1 to 20"),
        ("quiz_me", {"questions": "9" * 9999}, "1 to 20"),
        ("x" * 5000, {}, "tutor_me"),
    ],
)
async def test_wrong_arguments_are_refused_in_one_short_sentence(
    client: Client, name: str, arguments: dict[str, str], named: str
) -> None:
    with pytest.raises(MCPError) as caught:
        await client.get_prompt(name, arguments)

    assert caught.value.error.code == INVALID_PARAMS
    sentence = caught.value.error.message
    assert named in sentence
    assert len(sentence) < 250
    assert "\n" not in sentence


async def test_the_other_tissue_is_completed_with_look_alikes_first_and_never_the_same(
    client: Client,
) -> None:
    offered = await complete(client, "compare_two_tissues", "second", "", first="LYM")

    alike = [each.code for each in by_code("LYM").glossary.confused_with]
    assert offered[: len(alike)] == alike
    assert sorted([*offered, "LYM"]) == sorted(CODES)


async def test_arguments_of_the_lessons_are_completed(client: Client) -> None:
    assert await complete(client, "tutor_me", "tissue", "lympho") == ["LYM"]
    assert await complete(client, "tutor_me", "level", "med") == ["medical student"]
    assert await complete(client, "quiz_me", "questions", "2") == ["2", "20"]
    assert await complete(client, "compare_two_tissues", "first", "") == list(CODES)
