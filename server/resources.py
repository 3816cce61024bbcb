"""Resources: the tissues and their glossary, stored originals and their records, the model card, the reports.

Clients that never read resources reach the same through the tools.
"""

import re
from collections.abc import Mapping

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.server.mcpserver.resources import FileResource

from pathsynth.errors import RequestError, StoreError, WeightsError
from pathsynth.records import IMAGE_ID_PATTERN
from pathsynth.store import StoredImage
from pathsynth.studio import Studio
from pathsynth.tissues import CODES, TISSUES, by_code
from server.completion import Choices, one_of, tissue_codes
from tools.generate_tissue_image import image_uri
from tools.list_tissues import TissueList, entry
from tools.read_report import (
    REPORT_TYPES,
    REPORTS_URI,
    listed,
    no_such_report,
    read_model_card,
    report_files,
)
from tools.wording import without_folders

TISSUES_URI = "pathsynth://tissues"
MODEL_CARD_URI = "pathsynth://model-card"
TISSUE_TEMPLATE = f"{TISSUES_URI}/{{code}}"
IMAGE_TEMPLATE = image_uri("{image_id}")
RECORD_TEMPLATE = f"{IMAGE_TEMPLATE}/record"
REPORT_TEMPLATE = f"{REPORTS_URI}/{{name}}"

ANY_TYPE = "*/*"
"""Media type of a template whose resources differ in theirs; the server leaves it out of the listing."""


def choices(studio: Studio) -> Mapping[str, Mapping[str, Choices]]:
    """What the variables of the templates may be completed with."""
    image_ids = {"image_id": one_of(studio.store.ids)}
    return {
        TISSUE_TEMPLATE: {"code": tissue_codes},
        IMAGE_TEMPLATE: image_ids,
        RECORD_TEMPLATE: image_ids,
        REPORT_TEMPLATE: {
            "name": one_of(lambda: [path.name for path in report_files(studio.weights_folder)])
        },
    }


def register(server: MCPServer, studio: Studio) -> None:
    """Add every resource to `server`. What does not exist is answered with a `ResourceNotFoundError` in one
    sentence."""
    _register_tissues(server)
    _register_images(server, studio)
    _register_model_card(server, studio)
    _register_reports(server, studio)


def _register_tissues(server: MCPServer) -> None:
    @server.resource(
        TISSUES_URI,
        name="tissues",
        title="The nine tissues",
        description="Codes, labels and synonyms of the nine tissues, in PathMNIST order.",
        mime_type="application/json",
    )
    def tissues() -> str:
        listed = TissueList(tissues=[entry(tissue, glossary=False) for tissue in TISSUES])
        return listed.model_dump_json(exclude_none=True)

    @server.resource(
        TISSUE_TEMPLATE,
        name="tissue",
        title="Glossary of a tissue",
        description=f"What one sees in a tile, and what tells it from its look-alikes. "
        f"Codes: {', '.join(CODES)}.",
        mime_type="application/json",
    )
    def tissue(code: str) -> str:
        try:
            found = by_code(code)
        except RequestError as error:
            raise ResourceNotFoundError(str(error)) from error
        return entry(found, glossary=True).model_dump_json()


def _register_images(server: MCPServer, studio: Studio) -> None:
    def stored(image_id: str) -> StoredImage:
        if not re.fullmatch(IMAGE_ID_PATTERN, image_id):
            raise ResourceNotFoundError(
                "An image id has 16 hexadecimal digits, as in the answer of generate_tissue_image."
            )
        try:
            return studio.store.get(image_id)
        except StoreError as error:
            raise ResourceNotFoundError(without_folders(str(error))) from error

    @server.resource(
        IMAGE_TEMPLATE,
        name="image",
        title="Stored tile",
        description="The stored original of a generated tile as PNG, at its native size.",
        mime_type="image/png",
    )
    def image(image_id: str) -> bytes:
        return stored(image_id).path.read_bytes()

    @server.resource(
        RECORD_TEMPLATE,
        name="record",
        title="Record of a stored tile",
        description="How a tile came about: tissue, description, seed, confidence, attempts, model.",
        mime_type="application/json",
    )
    def record(image_id: str) -> str:
        return stored(image_id).record.model_dump_json()


def _register_model_card(server: MCPServer, studio: Studio) -> None:
    @server.resource(
        MODEL_CARD_URI,
        name="model-card",
        title="Model card",
        description="What the models were trained on, every figure with split, size and seed, and limits.",
        mime_type="text/markdown",
    )
    def model_card() -> str:
        try:
            return read_model_card(studio.weights_folder)
        except WeightsError as error:
            raise ResourceNotFoundError(str(error)) from error


def _register_reports(server: MCPServer, studio: Studio) -> None:
    """Each report is a resource of its own, so that it is listed with its own media type; the template is
    for clients that complete names, and only ever sees names that are not there."""

    @server.resource(
        REPORTS_URI,
        name="reports",
        title="Reports and plots",
        description="Names, addresses and sizes of the reports and plots that came with the weights.",
        mime_type="application/json",
    )
    def reports() -> str:
        return listed(studio.weights_folder).model_dump_json()

    for path in report_files(studio.weights_folder):
        kind = "Plot" if REPORT_TYPES[path.suffix].startswith("image/") else "Report"
        server.add_resource(
            FileResource(
                uri=f"{REPORTS_URI}/{path.name}",
                name=path.name,
                title=f"{kind} {path.stem}",
                description=f"{kind} that came with the weights.",
                mime_type=REPORT_TYPES[path.suffix],
                path=path,
            )
        )

    @server.resource(
        REPORT_TEMPLATE,
        name="report",
        title="Report or plot",
        description="A report as JSON, or a plot as PNG, that came with the weights.",
        mime_type=ANY_TYPE,
    )
    def report(name: str) -> str:
        raise ResourceNotFoundError(no_such_report(name, studio.weights_folder))
