"""Where a picture comes from: one of the store, known by its pixels, or one that says it is synthetic."""

from collections.abc import Sequence
from typing import Literal

from pathsynth.errors import StoreError
from pathsynth.images import Picture
from pathsynth.likeness import shows_tile
from pathsynth.provenance import ClaimedTile, claimed_tiles
from pathsynth.records import SyntheticOrigin
from pathsynth.store import ImageStore, StoredImage


def synthetic_origin(store: ImageStore, image: Picture, xmp: bytes | None = None) -> SyntheticOrigin | None:
    """How a picture (H, W, 3) of at least 28 px, with the XMP packet of its file, is known to be synthetic;
    None when nothing tells so, which does not say that it is not.
    """
    claims = claimed_tiles(xmp)
    if len(claims) == 1 and store.has(claims[0].image_id):
        try:
            named = store.get(claims[0].image_id)
        except StoreError:
            named = None
        if named is not None and shows_tile(image, named.pixels()):
            return _stored_origin("embedded", named)
    shown = store.recognise(image)
    if shown is not None:
        return _stored_origin("pixels", shown)
    if len(claims) == 1:
        return _claimed_origin(claims[0], is_stored=store.has(claims[0].image_id))
    return _claimed_sheet(claims) if claims else None


def _stored_origin(how: Literal["embedded", "pixels"], stored: StoredImage) -> SyntheticOrigin:
    record = stored.record
    found = "The file carries PathSynth's provenance record and the" if how == "embedded" else "The"
    return SyntheticOrigin(
        how=how,
        pixels_match=True,
        statement=f"{found} pixels are those of the stored synthetic image {record.image_id}.",
        image_id=record.image_id,
        tissue=record.tissue,
        verified=record.verified,
        confidence=record.confidence,
        seed=record.seed,
        model=record.model,
        description=record.description,
    )


def _claimed_origin(claim: ClaimedTile, *, is_stored: bool) -> SyntheticOrigin:
    doubt = (
        "the pixels are not, or no longer, those of that image"
        if is_stored
        else "that image is not in this store, so its pixels cannot be compared"
    )
    return SyntheticOrigin(
        how="embedded",
        pixels_match=False if is_stored else None,
        statement=(
            f"The file carries PathSynth's provenance record of the synthetic image {claim.image_id}, but "
            f"{doubt}; a record can be copied from another file."
        ),
        image_id=claim.image_id,
        tissue=claim.tissue,
        verified=claim.verified,
        confidence=claim.confidence,
        seed=claim.seed,
        model=claim.model,
    )


def _claimed_sheet(claims: Sequence[ClaimedTile]) -> SyntheticOrigin:
    """Of a picture that shows several tiles."""
    tissues, models = {claim.tissue for claim in claims}, {claim.model for claim in claims}
    return SyntheticOrigin(
        how="embedded",
        pixels_match=None,
        statement=(
            f"The file carries PathSynth's provenance record of a contact sheet of {len(claims)} synthetic "
            "images; a record can be copied from another file."
        ),
        image_id=None,
        tissue=tissues.pop() if len(tissues) == 1 else None,
        verified=all(claim.verified for claim in claims),
        confidence=None,
        seed=None,
        model=models.pop() if len(models) == 1 else None,
    )
