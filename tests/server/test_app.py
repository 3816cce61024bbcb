"""What the server tells about itself, and its resources, in both protocol eras."""

import pytest
from mcp import Client, MCPError
from mcp_types import INVALID_PARAMS, ToolAnnotations

from pathsynth import __version__
from tests.fakes import FakeStudio
from tests.mcp_fixtures import refusal

pytestmark = pytest.mark.anyio

TOOLS = [
    "generate_tissue_image",
    "classify_image",
    "evaluate_model",
    "list_tissues",
    "view_image",
    "read_report",
]


async def test_the_server_names_itself_and_its_version(client: Client, mode: str) -> None:
    assert client.server_info is not None
    assert (client.server_info.name, client.server_info.version) == ("pathsynth", __version__)
    assert client.protocol_version == {"auto": "2026-07-28", "legacy": "2025-11-25"}[mode]


async def test_the_instructions_name_the_tools_and_forbid_diagnosis(client: Client) -> None:
    assert client.instructions is not None
    assert [tool for tool in TOOLS if tool not in client.instructions] == []
    assert "not for diagnosis" in client.instructions
    assert "only where you see them" in client.instructions


async def test_the_tools_have_their_final_names_in_a_fixed_order(client: Client) -> None:
    assert [tool.name for tool in (await client.list_tools()).tools] == TOOLS


async def test_every_tool_has_a_title_and_all_four_annotations(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}

    assert all(tool.title for tool in tools.values())
    assert {name: tool.annotations for name, tool in tools.items()} == {
        name: ToolAnnotations(
            title=tools[name].title,
            read_only_hint=name != "generate_tissue_image",
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        )
        for name in TOOLS
    }


async def test_every_argument_is_described(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        assert tool.description
        for name, schema in tool.input_schema["properties"].items():
            assert schema.get("description"), f"{tool.name}.{name}"


async def test_every_number_and_text_argument_has_bounds(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        for name, schema in tool.input_schema["properties"].items():
            bounds = {
                "integer": {"minimum", "maximum"},
                "number": {"minimum", "maximum"},
                "string": {"maxLength"},
                "array": {"minItems", "maxItems"},
                "boolean": set(),
            }
            assert "enum" in schema or bounds[schema["type"]] <= set(schema), f"{tool.name}.{name}"


async def test_only_the_tools_whose_answer_is_data_have_an_output_schema(client: Client) -> None:
    schemas = {tool.name: tool.output_schema for tool in (await client.list_tools()).tools}

    assert schemas["generate_tissue_image"] is None
    assert schemas["view_image"] is None
    assert schemas["read_report"] is None
    assert "tissues" in (schemas["list_tissues"] or {})["properties"]
    assert "top" in (schemas["classify_image"] or {})["properties"]
    assert "probabilities" in (schemas["classify_image"] or {})["properties"]
    assert "confusion" in (schemas["evaluate_model"] or {})["properties"]


async def test_listing_the_tools_is_cheap(client: Client) -> None:
    assert len((await client.list_tools()).model_dump_json(by_alias=True, exclude_none=True)) < 12_000


async def test_the_templates_are_listed_with_the_media_types_they_have_in_common(client: Client) -> None:
    templates = (await client.list_resource_templates()).resource_templates

    assert {template.uri_template: template.mime_type for template in templates} == {
        "pathsynth://images/{image_id}": "image/png",
        "pathsynth://images/{image_id}/record": "application/json",
        "pathsynth://tissues/{code}": "application/json",
        "pathsynth://reports/{name}": None,
    }


@pytest.mark.parametrize(
    "uri",
    [
        "pathsynth://images/0123456789abcdef",
        "pathsynth://images/0123456789abcdef/record",
        "pathsynth://images/nonsense",
        "pathsynth://images/0123456789ABCDEF",
        "pathsynth://images/..%2F..%2Fetc%2Fpasswd",
        "pathsynth://images/",
        "pathsynth://nothing",
        "file:///etc/passwd",
    ],
)
async def test_a_resource_that_is_not_there_is_a_wrong_parameter(
    client: Client, studio: FakeStudio, uri: str
) -> None:
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri)

    assert caught.value.error.code == INVALID_PARAMS
    assert str(studio.store.root) not in caught.value.error.message


async def test_an_unknown_tool_is_refused(client: Client) -> None:
    try:
        sentence = refusal(await client.call_tool("draw_liver", {}))
    except MCPError as error:
        sentence = error.error.message
    assert "draw_liver" in sentence
