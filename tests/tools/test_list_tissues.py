"""`list_tissues`, through a client in both protocol eras."""

import json

import pytest
from mcp import Client

from pathsynth.tissues import CODES, TISSUES
from tests.mcp_fixtures import refusal, texts
from tools.list_tissues import TissueList

pytestmark = pytest.mark.anyio

TOOL = "list_tissues"


async def test_the_nine_are_told_in_their_order_and_in_short(client: Client) -> None:
    result = await client.call_tool(TOOL, {})

    (text,) = texts(result)
    assert json.loads(text) == result.structured_content
    answer = TissueList.model_validate(result.structured_content)
    assert [(each.tissue, each.label) for each in answer.tissues] == [(t.code, t.label) for t in TISSUES]
    assert all(each.synonyms for each in answer.tissues)
    assert "seen" not in text


async def test_the_glossary_is_told_when_it_is_asked_for(client: Client) -> None:
    result = await client.call_tool(TOOL, {"glossary": True})

    answer = TissueList.model_validate(result.structured_content)
    for told, tissue in zip(answer.tissues, TISSUES, strict=True):
        assert told.seen == tissue.glossary.seen
        assert list(told.confused_with or {}) == [each.code for each in tissue.glossary.confused_with]
    assert len(result.model_dump_json(by_alias=True)) < 60_000


async def test_one_tissue_can_be_asked_for(client: Client) -> None:
    result = await client.call_tool(TOOL, {"tissue": " lym "})

    assert [each.tissue for each in TissueList.model_validate(result.structured_content).tissues] == ["LYM"]


async def test_an_unknown_tissue_is_answered_with_all_the_codes(client: Client) -> None:
    sentence = refusal(await client.call_tool(TOOL, {"tissue": "LIVER"}))

    assert [code for code in CODES if code not in sentence] == []
