"""`read_report`, through a client in both protocol eras."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from mcp import Client
from mcp_types import ResourceLink, TextResourceContents
from PIL import Image

from tests.fakes import FakeStudio, noisy_tile
from tests.mcp_fixtures import images, refusal, texts

pytestmark = pytest.mark.anyio

TOOL = "read_report"
RESULT_BYTES = 300_000


@pytest.fixture(autouse=True)
def weights(studio: FakeStudio, tmp_path: Path) -> Path:
    """A folder of weights with a card, a report, and plots of which one is too large to be sent as it is."""
    folder = tmp_path / "reported"
    (folder / "reports").mkdir(parents=True)
    (folder / "MODEL_CARD.md").write_text("# Model card\n\nÅ figure: 0.84.\n", encoding="utf-8")
    (folder / "reports" / "generator.json").write_text('{"macro_f1": 0.84}\n', encoding="utf-8")
    for name, edge in {"small": 40, "large": 500}.items():
        Image.fromarray(noisy_tile(1, edge)).save(folder / "reports" / f"{name}.png")
    (folder / "reports" / "notes.txt").write_text("none of the client's business", encoding="utf-8")
    studio._weights_folder = folder
    return folder


async def test_without_a_name_all_names_are_told(client: Client, weights: Path) -> None:
    result = await client.call_tool(TOOL, {})

    names = {each["name"]: each["bytes"] for each in json.loads(texts(result)[0])["reports"]}
    files = ("generator.json", "large.png", "small.png")
    assert names == {name: (weights / "reports" / name).stat().st_size for name in files}
    assert "model-card" in texts(result)[1]


@pytest.mark.parametrize(("name", "uri"), [("model-card", ""), ("generator.json", "reports/")])
async def test_texts_are_those_of_the_resources(client: Client, weights: Path, name: str, uri: str) -> None:
    result = await client.call_tool(TOOL, {"name": f" {name} "})

    path = weights / ("MODEL_CARD.md" if name == "model-card" else f"reports/{name}")
    assert texts(result) == [path.read_text(encoding="utf-8")]
    if name == "model-card":  # reports are listed as resources when the server starts
        (contents,) = (await client.read_resource(f"pathsynth://{uri}{name}")).contents
        assert isinstance(contents, TextResourceContents)
        assert [contents.text] == texts(result)


async def test_a_plot_is_shown_with_a_link_to_it(client: Client, weights: Path) -> None:
    result = await client.call_tool(TOOL, {"name": "small.png"})

    (picture,) = images(result)
    assert picture.mime_type == "image/png"
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(picture.data))))
    assert np.array_equal(shown, np.array(Image.open(weights / "reports" / "small.png")))
    links = [block.uri for block in result.content if isinstance(block, ResourceLink)]
    assert links == ["pathsynth://reports/small.png"]


async def test_a_plot_that_is_too_large_is_sent_as_jpeg(client: Client) -> None:
    result = await client.call_tool(TOOL, {"name": "large.png"})

    assert images(result)[0].mime_type == "image/jpeg"
    assert "JPEG" in texts(result)[0]
    assert len(result.model_dump_json(by_alias=True).encode()) <= RESULT_BYTES


@pytest.mark.parametrize("name", ["Generator.json", "../MODEL_CARD.md", "notes.txt", "/etc/passwd", "card"])
async def test_a_name_that_is_none_is_answered_with_those_there_are(client: Client, name: str) -> None:
    sentence = refusal(await client.call_tool(TOOL, {"name": name}))

    assert "generator.json, large.png, small.png" in sentence


async def test_weights_without_a_card_or_reports_say_so(
    client: Client, studio: FakeStudio, tmp_path: Path
) -> None:
    studio._weights_folder = tmp_path
    assert "no model card" in refusal(await client.call_tool(TOOL, {"name": "model-card"}))
    assert "carry none" in refusal(await client.call_tool(TOOL, {"name": "generator.json"}))
    assert json.loads(texts(await client.call_tool(TOOL, {}))[0]) == {"reports": []}
