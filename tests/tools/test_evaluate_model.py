"""`evaluate_model`, through a client in both protocol eras."""

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from mcp import Client
from mcp_types import ResourceLink

from pathsynth.errors import DataError, OutOfTimeError, WeightsError
from pathsynth.records import Report
from pathsynth.tissues import CODES
from tests.fakes import FakeStudio, report
from tests.mcp_fixtures import refusal, texts

pytestmark = pytest.mark.anyio

TOOL = "evaluate_model"


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({}, ("validator", "val")),
        ({"what": "validator", "split": "test"}, ("validator", "test")),
        ({"what": "generator", "per_class": 3, "seed": 9}, ("generator", 3, 9)),
    ],
)
async def test_measured_figures_come_as_structured_answer_and_the_same_text(
    client: Client, studio: FakeStudio, arguments: dict[str, Any], asked: tuple[object, ...]
) -> None:
    result = await client.call_tool(TOOL, arguments)

    assert not result.is_error, texts(result)
    assert studio.asked == [asked]
    (text,) = texts(result)
    measured = Report.model_validate(result.structured_content)
    assert Report.model_validate_json(text) == measured
    assert measured.source == "measured"
    assert list(measured.per_class) == list(CODES)
    assert len(measured.confusion) == 9


@pytest.mark.parametrize("split", ["val", "test"])
async def test_without_the_data_the_committed_report_stands_in_and_the_answer_says_so(
    client: Client, studio: FakeStudio, split: str
) -> None:
    studio.data_error = DataError("PathMNIST was not found in /srv/medmnist; run `pathsynth data fetch`.")
    studio.committed[f"validator-{split}"] = report("validator", split=split, source="committed report")

    result = await client.call_tool(TOOL, {"what": "validator", "split": split})

    answer = Report.model_validate(result.structured_content)
    assert (answer.source, answer.split) == ("committed report", split)
    assert "committed report" in texts(result)[1]
    assert "`pathsynth data fetch`" in texts(result)[1]
    assert "/srv" not in texts(result)[1]


async def test_without_data_and_without_report_the_reason_is_told(client: Client, studio: FakeStudio) -> None:
    studio.data_error = DataError("PathMNIST was not found; run `pathsynth data fetch`.")
    studio.error = WeightsError("reports are missing from the weights; install PathSynth again.")

    assert refusal(await client.call_tool(TOOL, {})) == str(studio.error)


async def test_batches_are_reported_as_progress(client: Client) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    await client.call_tool(TOOL, {"what": "generator"}, progress_callback=on_progress)

    assert seen == [(1, 3, "Batch 1"), (2, 3, "Batch 2"), (3, 3, "Batch 3")]


async def test_a_cancelled_evaluation_stops(client: Client, studio: FakeStudio) -> None:
    studio.pauses_before_attempt = 0

    async def call() -> None:
        await client.call_tool(TOOL, {"what": "generator"})

    with anyio.fail_after(10):
        async with anyio.create_task_group() as calls:
            calls.start_soon(call)
            assert await anyio.to_thread.run_sync(studio.paused.wait, 5)
            calls.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(studio.stopped.wait, 5)


@pytest.mark.parametrize("what", ["validator", "generator"])
async def test_figures_of_fewer_images_than_asked_say_so(
    client: Client, studio: FakeStudio, what: str
) -> None:
    studio.measures = 36
    result = await client.call_tool(TOOL, {"what": what})

    answer = Report.model_validate(result.structured_content)
    assert (answer.source, answer.n) == ("measured", 36)
    asked = {"validator": "10,004", "generator": "45"}[what]
    assert texts(result)[1] == f"The time of the call sufficed for 36 of {asked} images."


async def test_a_measurement_without_a_first_figure_gives_way_to_the_committed_report(
    client: Client, studio: FakeStudio
) -> None:
    studio.data_error = OutOfTimeError("The time was spent before the first tile was named.")
    studio.committed["validator-val"] = report("validator", source="committed report")

    result = await client.call_tool(TOOL, {})

    assert Report.model_validate(result.structured_content) == studio.committed["validator-val"]
    assert "The time was spent" in texts(result)[1]


async def test_the_library_is_given_less_than_the_time_of_the_call(
    client: Client, studio: FakeStudio
) -> None:
    await client.call_tool(TOOL, {"what": "generator"})

    assert studio.time_budgets == [pytest.approx(34, abs=3)]


async def test_plots_of_the_committed_report_are_linked(
    client: Client, studio: FakeStudio, tmp_path: Path
) -> None:
    studio._weights_folder = tmp_path
    (tmp_path / "reports").mkdir()
    for name in ("confusion-validator-val.png", "confusion-generator.png", "tiles.png", "validator-val.json"):
        (tmp_path / "reports" / name).touch()

    async def linked(**arguments: str) -> list[str]:
        result = await client.call_tool(TOOL, arguments)
        return [str(block.uri) for block in result.content if isinstance(block, ResourceLink)]

    assert await linked(split="val") == ["pathsynth://reports/confusion-validator-val.png"]
    assert await linked(split="test") == []
    assert await linked(what="generator") == [
        "pathsynth://reports/confusion-generator.png",
        "pathsynth://reports/tiles.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"what": "judge"}, "what"),
        ({"split": "train"}, "split"),
        ({"what": "generator", "per_class": 0}, "per_class"),
        ({"what": "generator", "per_class": 1000}, "per_class"),
        ({"what": "generator", "seed": -1}, "seed"),
    ],
)
async def test_a_bad_argument_is_refused_in_one_sentence_that_names_it(
    client: Client, studio: FakeStudio, arguments: dict[str, Any], named: str
) -> None:
    assert named in refusal(await client.call_tool(TOOL, arguments))
    assert studio.asked == []
