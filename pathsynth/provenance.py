"""The provenance record that every PNG of PathSynth carries, and how it is read back.

It stands in the file twice: as text chunks, which any viewer of PNG properties shows, and as an XMP packet
with the properties of the IPTC Photo Metadata Standard 2025.1 for generated media, which survives in other
formats when the program that converts the picture keeps XMP. There is no time in it: the same tile gives the
same bytes.

Metadata can be copied onto any picture, or forged. What is read back is what a file claims, and only values
that cannot carry a message of their own, such as ids and numbers, are taken over from it.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

from defusedxml.ElementTree import fromstring
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pathsynth import __version__
from pathsynth.images import XMP_KEYWORD
from pathsynth.records import IMAGE_ID_PATTERN, MAX_COUNT, MAX_SEED, TileRecord
from pathsynth.tissues import CODES

SYSTEM: Final = "PathSynth"
NOTICE: Final = "synthetic, not for diagnosis"
SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

MAX_XMP_BYTES: Final = 256_000
"""Longest XMP packet that is read; editors append their history to it."""

_FACTS: Final = ("image_id", "tissue", "label", "verified", "confidence", "seed", "size", "model")
_SHORT_DESCRIPTION: Final = 200

_META: Final = "adobe:ns:meta/"
_RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC: Final = "http://purl.org/dc/elements/1.1/"
_XMP: Final = "http://ns.adobe.com/xap/1.0/"
_TIFF: Final = "http://ns.adobe.com/tiff/1.0/"
_IPTC: Final = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_OWN: Final = "pathsynth://provenance/1.0/"
_XML_LANGUAGE: Final = "{http://www.w3.org/XML/1998/namespace}lang"

for _prefix, _namespace in (
    ("x", _META),
    ("rdf", _RDF),
    ("dc", _DC),
    ("xmp", _XMP),
    ("tiff", _TIFF),
    ("Iptc4xmpExt", _IPTC),
    ("pathsynth", _OWN),
):
    ET.register_namespace(_prefix, _namespace)

_PACKET: Final = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{}\n<?xpacket end="r"?>'

_UNWRITABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # control, surrogates, nothing
)


def provenance_text(tiles: Sequence[TileRecord], title: str | None = None) -> dict[str, str]:
    """Text chunks of a PNG that shows `tiles`, by keyword, for `pathsynth.images.encode_png`.

    A picture of generated tiles that have no records gets none of their facts, and needs a `title`. Several
    descriptions share a picture shortened to 200 characters each; the records have all of them.
    """
    title = title or _title(tiles)
    prompt = _prompt(tiles)
    facts = [{name: getattr(tile, name) for name in _FACTS} for tile in tiles]
    record = {
        "synthetic": True,
        "notice": NOTICE,
        "software": SYSTEM,
        "version": __version__,
        "description": prompt,
        "tiles": facts,
    }
    text = {
        "Title": title,
        "Description": _writable(prompt),
        "Software": f"{SYSTEM} {__version__}",
        "Disclaimer": NOTICE,
        SYSTEM: json.dumps(record, separators=(",", ":")),
        XMP_KEYWORD: _packet(title, prompt, facts),
    }
    return {keyword: value for keyword, value in text.items() if value}


def _title(tiles: Sequence[TileRecord]) -> str:
    labels = " and ".join(dict.fromkeys(tile.label for tile in tiles))
    return f"Synthetic tile{'s' if len(tiles) > 1 else ''} of {labels}"


def _prompt(tiles: Sequence[TileRecord]) -> str:
    prompts = tuple(dict.fromkeys(tile.description for tile in tiles))
    if len(prompts) == 1:
        return prompts[0]
    return "\n".join(prompt[:_SHORT_DESCRIPTION] for prompt in prompts)


def _writable(text: str) -> str:
    """The text with what XML 1.0 or PNG cannot hold replaced by U+FFFD, and its lines ended by line feeds."""
    return _UNWRITABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _packet(title: str, prompt: str, tiles: Sequence[dict[str, object]]) -> str:
    root = ET.Element(f"{{{_META}}}xmpmeta")
    description = ET.SubElement(ET.SubElement(root, f"{{{_RDF}}}RDF"), f"{{{_RDF}}}Description")
    description.set(f"{{{_RDF}}}about", "")

    def add(namespace: str, name: str, text: str) -> None:
        if text:
            ET.SubElement(description, f"{{{namespace}}}{name}").text = _writable(text)

    def add_language_alternative(namespace: str, name: str, text: str) -> None:
        choices = ET.SubElement(ET.SubElement(description, f"{{{namespace}}}{name}"), f"{{{_RDF}}}Alt")
        ET.SubElement(choices, f"{{{_RDF}}}li", {_XML_LANGUAGE: "x-default"}).text = _writable(text)

    # Pillow and others find the orientation by searching the packet as text: it stands before the prompt,
    # which could name another one.
    add(_TIFF, "Orientation", "1")
    add(_IPTC, "DigitalSourceType", SOURCE_TYPE)
    add(_IPTC, "AISystemUsed", SYSTEM)
    add(_IPTC, "AISystemVersionUsed", __version__)
    add(_IPTC, "AIPromptInformation", prompt)
    add(_XMP, "CreatorTool", f"{SYSTEM} {__version__}")
    add_language_alternative(_DC, "title", title)
    add_language_alternative(_DC, "description", f"{title}; {NOTICE}.")
    add(_OWN, "notice", NOTICE)
    if tiles:
        sequence = ET.SubElement(ET.SubElement(description, f"{{{_OWN}}}tiles"), f"{{{_RDF}}}Seq")
        for facts in tiles:
            tile = ET.SubElement(sequence, f"{{{_RDF}}}li", {f"{{{_RDF}}}parseType": "Resource"})
            for name, value in facts.items():
                ET.SubElement(tile, f"{{{_OWN}}}{name}").text = str(value)
    return _PACKET.format(ET.tostring(root, encoding="unicode"))


def _known_code(code: str) -> str:
    if code not in CODES:
        raise ValueError("no tissue has this code")
    return code


class ClaimedTile(BaseModel):
    """What a provenance record says of one tile; `label` is left out, since the code implies it."""

    model_config = ConfigDict(frozen=True)

    image_id: str = Field(pattern=IMAGE_ID_PATTERN)
    tissue: Annotated[str, AfterValidator(_known_code)]
    verified: bool
    confidence: float = Field(ge=0, le=1)
    seed: int = Field(ge=0, le=MAX_SEED)
    size: int = Field(ge=1, le=65_536)
    model: str = Field(pattern=r"^[0-9a-f]{6,64}$")


def claimed_tiles(xmp: bytes | None) -> tuple[ClaimedTile, ...]:
    """The tiles that an XMP packet says the picture shows; none when it is not PathSynth's, or is damaged."""
    if xmp is None or len(xmp) > MAX_XMP_BYTES:
        return ()
    try:
        root = fromstring(xmp, forbid_dtd=True)
        return tuple(_claims(root))
    except (SyntaxError, ValueError, LookupError):  # XML that is broken or forbidden, values out of bounds
        return ()


def _claims(root: ET.Element) -> Iterator[ClaimedTile]:
    """Raises ValidationError, a ValueError, when a tile is not described as PathSynth describes it."""
    for place, tile in enumerate(root.iterfind(f".//{{{_OWN}}}tiles/{{{_RDF}}}Seq/{{{_RDF}}}li")):
        if place == MAX_COUNT:
            return
        # A fact may stand as an element or as an attribute, and editors change the one into the other.
        facts: dict[str, str | None] = {}
        for part in tile.iter():
            facts |= {**part.attrib, part.tag: part.text}
        yield ClaimedTile.model_validate(
            {name: facts.get(f"{{{_OWN}}}{name}") for name in ClaimedTile.model_fields}
        )
