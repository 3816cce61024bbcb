"""What a client reads besides calling tools, and what it is offered while typing, in both protocol eras."""

import base64
import json
from pathlib import Path

import pytest
from mcp import Client, MCPError
from mcp_types import INVALID_PARAMS, BlobResourceContents, ResourceTemplateReference, TextResourceContents

from pathsynth.tissues import CODES, TISSUES, Tissue, by_code
from tests.fakes import FakeStudio

pytestmark = pytest.mark.anyio

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
REPORTS = sorted(path.name for path in (WEIGHTS / "reports").iterdir())


async def text(client: Client, uri: str, mime_type: str = "application/json") -> str:
    (contents,) = (await client.read_resource(uri)).contents
    assert isinstance(contents, TextResourceContents)
    assert contents.mime_type == mime_type
    return contents.text


async def refused(client: Client, uri: str) -> str:
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri)
    assert caught.value.error.code == INVALID_PARAMS
    return caught.value.error.message


async def complete(client: Client, template: str, argument: str, typed: str) -> list[str]:
    reference = ResourceTemplateReference(uri=template)
    return (await client.complete(reference, {"name": argument, "value": typed})).completion.values


async def test_everything_that_can_be_read_is_listed_with_its_media_type(client: Client) -> None:
    listed = {each.uri: each.mime_type for each in (await client.list_resources()).resources}

    types = {".json": "application/json", ".png": "image/png"}
    assert listed == {
        "pathsynth://tissues": "application/json",
        "pathsynth://model-card": "text/markdown",
        "pathsynth://reports": "application/json",
    } | {f"pathsynth://reports/{name}": types[Path(name).suffix] for name in REPORTS}


async def test_the_tissues_are_listed_in_their_order(client: Client) -> None:
    tissues = json.loads(await text(client, "pathsynth://tissues"))["tissues"]

    assert [(each["tissue"], each["label"]) for each in tissues] == [(t.code, t.label) for t in TISSUES]


@pytest.mark.parametrize("tissue", TISSUES, ids=lambda tissue: tissue.code)
async def test_the_glossary_says_what_is_seen_and_what_it_is_mistaken_for(
    client: Client, tissue: Tissue
) -> None:
    entry = json.loads(await text(client, f"pathsynth://tissues/{tissue.code}"))

    assert (entry["tissue"], entry["label"], entry["seen"]) == (
        tissue.code,
        tissue.label,
        tissue.glossary.seen,
    )
    assert list(entry["confused_with"].items()) == [
        (confusion.code, confusion.difference) for confusion in tissue.glossary.confused_with
    ]


async def test_a_code_may_be_written_in_small_letters(client: Client) -> None:
    assert json.loads(await text(client, "pathsynth://tissues/tum"))["tissue"] == by_code("TUM").code


async def test_an_unknown_code_is_answered_with_the_nine(client: Client) -> None:
    sentence = await refused(client, "pathsynth://tissues/LIVER")

    assert "LIVER" in sentence
    assert [code for code in CODES if code not in sentence] == []


async def test_the_model_card_is_the_one_of_the_weights(client: Client) -> None:
    card = await text(client, "pathsynth://model-card", "text/markdown")

    assert card == (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")


async def test_weights_without_a_card_say_so(client: Client, studio: FakeStudio, tmp_path: Path) -> None:
    studio._weights_folder = tmp_path

    assert await refused(client, "pathsynth://model-card") == (
        "These weights carry no model card; install PathSynth again."
    )


@pytest.mark.parametrize("name", REPORTS)
async def test_every_report_and_plot_is_read_byte_for_byte(client: Client, name: str) -> None:
    (contents,) = (await client.read_resource(f"pathsynth://reports/{name}")).contents

    is_plot = isinstance(contents, BlobResourceContents)
    assert is_plot == name.endswith(".png")
    assert contents.mime_type == ("image/png" if is_plot else "application/json")
    read = (
        base64.b64decode(contents.blob)
        if isinstance(contents, BlobResourceContents)
        else contents.text.encode("utf-8")
    )
    assert read == (WEIGHTS / "reports" / name).read_bytes()


async def test_the_list_of_reports_gives_addresses_and_sizes(client: Client) -> None:
    listed = json.loads(await text(client, "pathsynth://reports"))["reports"]

    assert [(each["name"], each["bytes"]) for each in listed] == [
        (name, (WEIGHTS / "reports" / name).stat().st_size) for name in REPORTS
    ]
    assert [each["uri"] for each in listed] == [f"pathsynth://reports/{name}" for name in REPORTS]


@pytest.mark.parametrize("name", ["accuracy.json", "tiles.jpg", "manifest.json", "x" * 5000])
async def test_an_unknown_report_is_answered_with_those_there_are(client: Client, name: str) -> None:
    sentence = await refused(client, f"pathsynth://reports/{name}")

    assert name[:40] in sentence
    assert [report for report in REPORTS if report not in sentence] == []
    assert len(sentence) < 120 + sum(len(report) + 2 for report in REPORTS)


async def test_nothing_outside_the_reports_can_be_named(client: Client) -> None:
    for path in ("../manifest.json", "..%2Fmanifest.json", "%2Fetc%2Fpasswd", "..%5Cmanifest.json"):
        await refused(client, f"pathsynth://reports/{path}")


@pytest.mark.parametrize("tissue", TISSUES, ids=lambda tissue: tissue.code)
async def test_codes_are_completed_from_codes_labels_and_synonyms(client: Client, tissue: Tissue) -> None:
    for typed in (tissue.code[:2].lower(), tissue.label[:6], tissue.synonyms[0].upper()):
        assert tissue.code in await complete(client, "pathsynth://tissues/{code}", "code", typed)


async def test_nothing_typed_offers_all_nine_in_their_order(client: Client) -> None:
    assert await complete(client, "pathsynth://tissues/{code}", "code", "") == list(CODES)


async def test_what_no_tissue_is_called_offers_nothing(client: Client) -> None:
    assert await complete(client, "pathsynth://tissues/{code}", "code", "liver") == []


async def test_image_ids_are_completed_from_the_store(client: Client, studio: FakeStudio) -> None:
    template = "pathsynth://images/{image_id}"
    assert await complete(client, template, "image_id", "") == []
    await client.call_tool("generate_tissue_image", {"tissue": "ADI", "count": 3})
    ids = studio.store.ids()
    assert len(ids) == 3

    for each in (template, f"{template}/record"):
        assert await complete(client, each, "image_id", "") == list(ids)
    assert ids[1] in await complete(client, template, "image_id", ids[1][:4].upper())


async def test_no_more_than_a_hundred_values_are_offered(client: Client, studio: FakeStudio) -> None:
    for start in range(0, 108, 9):
        await client.call_tool("generate_tissue_image", {"tissue": "ADI", "count": 9, "seed": start})
    reference = ResourceTemplateReference(uri="pathsynth://images/{image_id}")

    completion = (await client.complete(reference, {"name": "image_id", "value": ""})).completion

    assert completion.values == list(studio.store.ids()[:100])
    assert (completion.total, completion.has_more) == (108, True)


async def test_names_of_reports_are_completed(client: Client) -> None:
    offered = await complete(client, "pathsynth://reports/{name}", "name", "Valid")

    assert offered == [name for name in REPORTS if name.startswith("valid")]


@pytest.mark.parametrize(
    ("template", "argument"), [("pathsynth://nothing/{x}", "x"), ("pathsynth://tissues/{code}", "x")]
)
async def test_what_cannot_be_completed_is_a_wrong_parameter(
    client: Client, template: str, argument: str
) -> None:
    with pytest.raises(MCPError) as caught:
        await complete(client, template, argument, "")

    assert caught.value.error.code == INVALID_PARAMS
