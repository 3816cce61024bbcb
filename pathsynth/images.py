"""Images in and out: reading whatever a user has, the PathMNIST resizing, PNG, enlargement, contact sheets.

Every picture inside PathSynth is a uint8 array (height, width, 3) in RGB.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from pathsynth.errors import ImageError

Picture = npt.NDArray[np.uint8]

NATIVE_EDGE: Final = 28
MAX_PIXELS: Final = 64_000_000
MAX_INFLATION: Final = 200
"""How many times its file size an image above `_ALWAYS_READ` pixels may take; no photograph comes near."""

_ALWAYS_READ: Final = 4_000_000

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_FORMAT_NAMES: Final = "PNG, JPEG, WebP, TIFF, BMP, GIF or PNM"
_SINGLE_PICTURE_DESPITE_FRAMES: Final = "MPO"  # a camera's JPEG with a preview behind the picture
_SNIFFED: Final = 1024
_PNG_SIGNATURE: Final = 8
_PNG_CHUNK: Final = struct.Struct(">I4s")
_PNG_CHECKSUM: Final = 4
_PNG_METADATA: Final = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf"})
_REPAIRED_BYTES: Final = 64_000_000
_XMP_PADDING: Final = b"\x00 "
_BROKEN: Final = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)

XMP_KEYWORD: Final = "XML:com.adobe.xmp"

_CAPTION_HEIGHT: Final = 18
_CAPTION_POINTS: Final = 12
_GAP: Final = 4
_WHITE: Final = (255, 255, 255)
_INK: Final = (30, 30, 30)


class _DamagedError(ImageError):
    """The file is no whole image, as far as can be told with the metadata that it has."""


def read_image(source: Path | bytes) -> Picture:
    """Read an image file, or the bytes of one, as uint8 RGB (H, W, 3).

    Greyscale, palette, CMYK and 16-bit images are converted, transparent ones laid over white, and an EXIF
    orientation is applied. The size is checked in the header, before any pixel is decoded. Damaged metadata
    is passed over.

    Raises:
        ImageError: there is no such file, or it is not one whole picture of at most 64 megapixels.
    """
    return read_image_and_xmp(source)[0]


def read_image_and_xmp(source: Path | bytes) -> tuple[Picture, bytes | None]:
    """As `read_image`, and the XMP packet of the file as it stands there, None when it has none.

    Raises:
        ImageError: as `read_image`.
    """
    name = str(source) if isinstance(source, Path) else "The image"
    with _opened(source, name) as file:
        start = file.read(_SNIFFED)
        if not start:
            raise ImageError(f"{name} is empty; give a {_FORMAT_NAMES} image.")
        if _is_svg(start):
            raise ImageError(f"{name} is an SVG drawing, which has no pixels; export it as PNG first.")
        try:
            return _read(file, name)
        except _DamagedError:
            # What Pillow refuses may be the text beside the pixels: a wrong checksum, or a few bytes that
            # unpack to gigabytes.
            repaired = _without_metadata(file)
            if repaired is None:
                raise
            return _read(repaired, name)


def _read(file: IO[bytes], name: str) -> tuple[Picture, bytes | None]:
    file.seek(0)
    with _header(file, name) as image:
        _check_header(image, name)
        picture = _decode(image, name)
        if image.format == "PNG" and not _ends_as_png(file):
            raise _DamagedError(_damaged(name))
        xmp = image.info.get("xmp")
        return picture, xmp.rstrip(_XMP_PADDING) if isinstance(xmp, bytes) else None


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        if source.exists() and not source.is_file():
            kind = "a folder" if source.is_dir() else "not a regular file"
            raise ImageError(f"{name} is {kind}; give the path of an image file.")
        file = source.open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {name}; check the path.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(
            f"{name} cannot be opened ({reason}); check the path and its permissions."
        ) from error
    with file:
        yield file


def _is_svg(start: bytes) -> bool:
    text = start.decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n").lower()
    return text.startswith("<svg") or (text.startswith("<") and "<svg" in text)


def _header(file: IO[bytes], name: str) -> Image.Image:
    """The image with only its header read."""
    too_large = ImageError(
        f"{name} has more than {MAX_PIXELS // 1_000_000} megapixels; "
        "cut out the tile that is meant and give only that."
    )
    try:
        return Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except UnidentifiedImageError as error:
        raise _DamagedError(
            f"{name} is not an image that can be read; give a {_FORMAT_NAMES} image."
        ) from error
    except _BROKEN as error:
        raise _DamagedError(_damaged(name)) from error


def _png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, position of the body and length of every chunk of a PNG, up to the last one or to where it is cut
    off.
    """
    position = _PNG_SIGNATURE
    while True:
        file.seek(position)
        header = file.read(_PNG_CHUNK.size)
        if len(header) < _PNG_CHUNK.size:
            return
        length, kind = _PNG_CHUNK.unpack(header)
        yield kind, position + _PNG_CHUNK.size, length
        if kind == b"IEND":
            return
        position += _PNG_CHUNK.size + length + _PNG_CHECKSUM


def _ends_as_png(file: IO[bytes]) -> bool:
    """Whether a PNG has its last chunk; Pillow is content with all pixels, even when the rest is cut off."""
    for kind, body, length in _png_chunks(file):
        if kind == b"IEND":
            file.seek(body + length)
            return len(file.read(_PNG_CHECKSUM)) == _PNG_CHECKSUM
    return False


def _without_metadata(file: IO[bytes]) -> IO[bytes] | None:
    """A copy of a PNG without text and EXIF; None when it has none, is no PNG, or is too large to copy."""
    file.seek(0)
    signature = file.read(_PNG_SIGNATURE)
    if signature != b"\x89PNG\r\n\x1a\n":
        return None
    copy = io.BytesIO()
    copy.write(signature)
    is_shorter = False
    for kind, body, length in _png_chunks(file):
        if kind in _PNG_METADATA:
            is_shorter = True
            continue
        if copy.tell() + length > _REPAIRED_BYTES:
            return None
        file.seek(body - _PNG_CHUNK.size)
        copy.write(file.read(_PNG_CHUNK.size + length + _PNG_CHECKSUM))
    return copy if is_shorter else None


def _damaged(name: str) -> str:
    return f"{name} is damaged or cut short; get a whole copy of it."


def _check_header(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {image.width} x {image.height} px, more than {MAX_PIXELS // 1_000_000} megapixels; "
            "cut out the tile that is meant and give only that."
        )
    if _inflates(image):
        raise ImageError(
            f"{name} is a small file that claims {image.width} x {image.height} px, so it is empty or made "
            "to fill memory; cut out the tile that is meant and give only that."
        )
    try:
        animated = getattr(image, "is_animated", False) and image.format != _SINGLE_PICTURE_DESPITE_FRAMES
    except _BROKEN as error:
        raise _DamagedError(_damaged(name)) from error
    if animated:
        raise ImageError(
            f"{name} holds several pictures (an animation or pages); save the one that is meant on its own."
        )


def _inflates(image: Image.Image) -> bool:
    """Whether so small a file holds so many pixels that decoding it would only cost memory."""
    pixels = image.width * image.height
    file: IO[bytes] | None = getattr(image, "fp", None)
    if pixels <= _ALWAYS_READ or file is None:
        return False
    place = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(place)
    return 3 * pixels > MAX_INFLATION * size


def _decode(image: Image.Image, name: str) -> Picture:
    try:
        image.load()
    except MemoryError as error:
        raise ImageError(
            f"{name} is too large for the memory of this machine; give a smaller image."
        ) from error
    except _BROKEN as error:
        raise _DamagedError(_damaged(name)) from error
    try:
        upright = ImageOps.exif_transpose(image)
    except _BROKEN:  # the pixels are whole, only which way is up cannot be known
        upright = image
    try:
        return _to_rgb(upright)
    except ValueError as error:
        raise ImageError(
            f"{name} has colours of kind {image.mode}, which cannot be converted; save it as RGB."
        ) from error


def _to_rgb(image: Image.Image) -> Picture:
    """uint8 RGB of an image of any mode. Raises ValueError when Pillow knows no way."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_wide_grey(np.asarray(image))
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (*_WHITE, 255))
        image = Image.alpha_composite(white, transparent)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _from_wide_grey(grey: npt.NDArray[np.generic]) -> Picture:
    """Grey of 16 bits, 32 bits or floating point (H, W) as uint8 RGB (H, W, 3).

    White is 1, 255 or 65,535, whichever the values need; NaN is black.
    """
    values = np.nan_to_num(np.asarray(grey, dtype=np.float32))
    floating = np.issubdtype(grey.dtype, np.floating)
    peak = float(values.max(initial=0.0))
    white = 1.0 if floating and peak <= 1 else 255.0 if grey.dtype.itemsize > 2 and peak <= 255 else 65_535.0
    eight_bits = np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8)
    return np.repeat(eight_bits[..., None], 3, axis=2)


def to_native(image: Picture) -> Picture:
    """The 28-px tile (28, 28, 3) of an image, made as PathMNIST was: central square, then Pillow's BILINEAR.

    Raises:
        ImageError: an edge is shorter than 28 px.
    """
    height, width = image.shape[:2]
    edge = min(height, width)
    if edge < NATIVE_EDGE:
        raise ImageError(f"The image is {width} x {height} px; each edge needs at least {NATIVE_EDGE} px.")
    top, left = (height - edge) // 2, (width - edge) // 2
    square = np.ascontiguousarray(image[top : top + edge, left : left + edge])
    if edge == NATIVE_EDGE:
        return square
    return np.array(Image.fromarray(square).resize((NATIVE_EDGE, NATIVE_EDGE), Image.Resampling.BILINEAR))


def encode_png(
    image: Picture,
    text: Mapping[str, str] | None = None,
    compress_level: int = 6,
    colours: int | None = None,
) -> bytes:
    """PNG file of an image (H, W, 3), with `text` as its text chunks; the same input gives the same bytes.

    `compress_level` is zlib's, 1 (quickest) to 9 (smallest). `colours` leaves as many of the picture's, at
    most 256, for a file of half the size; by default they are exact. Keys of `text` are PNG keywords: 1 to 79
    Latin-1 characters. Text in Latin-1 becomes a tEXt chunk, other text and XMP an iTXt chunk.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        if key == XMP_KEYWORD:
            info.add_itxt(key, value)
        else:
            info.add_text(key, value)
    file = io.BytesIO()
    picture = Image.fromarray(image)
    picture = picture if colours is None else picture.quantize(colours)
    picture.save(file, "PNG", pnginfo=info, compress_level=compress_level)
    return file.getvalue()


def upscale(image: Picture, size: int) -> Picture:
    """A square image enlarged to (size, size, 3) with Lanczos; adds no detail."""
    if image.shape[:2] == (size, size):
        return image.copy()
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def contact_sheet(
    tiles: Sequence[Picture], captions: Sequence[str], columns: int, footer: str = ""
) -> Picture:
    """Tiles of one size in rows of `columns` on white, each with its caption below, cut where it is too wide;
    `footer` on a line of its own at the lower edge.

    Raises:
        ValueError: there is no tile, no column, or not one caption per tile.
    """
    if not tiles or columns < 1 or len(captions) != len(tiles):
        raise ValueError("a contact sheet needs at least one tile and one column, and one caption per tile")
    height, width = tiles[0].shape[:2]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    step_x, step_y = width + _GAP, height + _CAPTION_HEIGHT + _GAP
    bottom = _GAP + rows * step_y
    extra = _CAPTION_HEIGHT if footer else 0
    sheet = Image.new("RGB", (_GAP + columns * step_x, bottom + extra), _WHITE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_CAPTION_POINTS)
    for place, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = _GAP + place % columns * step_x, _GAP + place // columns * step_y
        sheet.paste(Image.fromarray(tile), (left, top))
        draw.text((left, top + height + 1), _fitting(caption, font, width), fill=_INK, font=font)
    if footer:
        draw.text((_GAP, bottom), _fitting(footer, font, sheet.width - 2 * _GAP), fill=_INK, font=font)
    return np.array(sheet)


def _fitting(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of the caption as fits `width` px."""
    while caption and font.getlength(caption) > width:
        caption = caption[:-1]
    return caption
