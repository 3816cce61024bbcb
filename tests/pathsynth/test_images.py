"""Reading whatever a user has, and what is made of it."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pathsynth.errors import ImageError
from pathsynth.images import contact_sheet, encode_png, read_image, to_native, upscale

Picture = npt.NDArray[np.uint8]


def gradient(height: int = 40, width: int = 60) -> Picture:
    """A picture whose every corner differs, with smooth colours."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, 128 + 0 * x], axis=2).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no pixels: what a decompression bomb looks like."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_image_is_read_exactly(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tile"
    path.write_bytes(saved(Image.fromarray(gradient()), kind))
    assert np.array_equal(read_image(path), gradient())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_lossy_image_is_read_nearly(kind: str) -> None:
    read = read_image(saved(Image.fromarray(gradient()), kind, quality=95))
    assert np.abs(read.astype(int) - gradient()).mean() < 3


def test_bytes_and_path_of_one_file_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tile.png"
    path.write_bytes(encode_png(gradient()))
    assert np.array_equal(read_image(path), read_image(path.read_bytes()))


def test_cmyk_is_converted() -> None:
    red = Image.new("CMYK", (30, 30), (0, 255, 255, 0))
    assert read_image(saved(red, "TIFF"))[0, 0].tolist() == [255, 0, 0]


def test_a_cmyk_jpeg_is_converted_with_its_colours_the_right_way_round() -> None:
    white = Image.new("CMYK", (30, 30), (0, 0, 0, 0))
    assert read_image(saved(white, "JPEG"))[0, 0].min() > 240


def test_grey_is_repeated_in_three_channels() -> None:
    read = read_image(saved(Image.new("L", (30, 30), 77)))
    assert read.shape == (30, 30, 3)
    assert set(read.flat) == {77}


def test_black_and_white_is_converted() -> None:
    assert set(read_image(saved(Image.new("1", (30, 30), 1))).flat) == {255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_brightness(kind: str) -> None:
    deep = np.full((30, 30), 32_896, dtype=np.uint16)  # 128 * 257
    deep[0, 0] = 65_535
    read = read_image(saved(Image.fromarray(deep), kind))
    assert read[5, 5].tolist() == [128, 128, 128]
    assert read[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("white", "grey"), [(1.0, 0.5), (255.0, 127.5), (65_535.0, 32_767.5)])
def test_floating_point_grey_is_scaled_by_the_range_it_uses(white: float, grey: float) -> None:
    values = np.full((30, 30), grey, dtype=np.float32)
    values[0, 0], values[0, 1] = white, np.nan
    read = read_image(saved(Image.fromarray(values), "TIFF"))
    assert read[0, 0, 0] == 255
    assert read[0, 1, 0] == 0
    assert read[5, 5, 0] in (127, 128)


def test_a_palette_image_gets_its_colours() -> None:
    image = Image.new("RGB", (30, 30), (10, 200, 30)).quantize(4)
    assert image.mode == "P"
    assert read_image(saved(image))[0, 0].tolist() == [10, 200, 30]


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    image.putpixel((3, 3), (200, 0, 0, 255))
    image.putpixel((4, 4), (0, 0, 0, 128))
    read = read_image(saved(image))
    assert read[0, 0].tolist() == [255, 255, 255]
    assert read[3, 3].tolist() == [200, 0, 0]
    assert 125 <= read[4, 4, 0] <= 129


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_transparency_of_grey_and_palette_images_is_laid_over_white(mode: str) -> None:
    image = Image.new("LA", (30, 30), (0, 0)) if mode == "LA" else Image.new("P", (30, 30), 0)
    options = {"transparency": 0} if mode == "P" else {}
    assert read_image(saved(image, "PNG", **options))[0, 0].tolist() == [255, 255, 255]


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    read = read_image(saved(Image.fromarray(gradient(40, 60)), "PNG", exif=exif))
    assert np.array_equal(read, np.rot90(gradient(40, 60), -1))


def test_a_single_frame_gif_is_read() -> None:
    assert read_image(saved(Image.new("RGB", (30, 30), (255, 0, 0)), "GIF"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_image_of_several_frames_is_refused(kind: str) -> None:
    frames = [Image.new("RGB", (30, 30), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    with pytest.raises(ImageError, match="several pictures"):
        read_image(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    rough = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(rough), kind)
    with pytest.raises(ImageError):
        read_image(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("missing", [1, 4, 12, 20])
def test_a_png_that_lacks_its_very_end_is_refused(missing: int) -> None:
    with pytest.raises(ImageError, match="cut short"):
        read_image(encode_png(gradient())[:-missing])


def test_a_png_with_something_behind_its_end_is_read() -> None:
    assert np.array_equal(read_image(encode_png(gradient()) + b"appended" * 20_000), gradient())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (8_001, 8_000), (10_000, 10_000), (2**31 - 1, 1)]
)
def test_a_huge_image_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(ImageError, match="64 megapixels"):
        read_image(png_header(width, height))


@pytest.mark.parametrize(
    "svg",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn by hand -->\n<svg width='9'/>",
    ],
)
def test_an_svg_is_named_as_such(svg: bytes) -> None:
    with pytest.raises(ImageError, match="SVG"):
        read_image(svg)


@pytest.mark.parametrize(
    "content", [b"not an image", b"%PDF-1.7", b"\x00" * 5000, b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tile.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="not an image"):
        read_image(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tile.png").touch()
    with pytest.raises(ImageError, match="is empty"):
        read_image(tmp_path / "tile.png")


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"There is no file .*absent\.png"):
        read_image(tmp_path / "absent.png")


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError):
        read_image(tmp_path / "file" / "tile.png")


@pytest.mark.parametrize("name", ["a\0b", "n" * 5000])
def test_an_impossible_path_is_refused(name: str) -> None:
    with pytest.raises(ImageError):
        read_image(Path(name))


def test_a_folder_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then refuses
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_damaged_image_is_read_or_refused_but_never_crashes(kind: str) -> None:
    whole = bytearray(saved(Image.fromarray(gradient()), kind))
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 400), 4):
            damaged[place] = random.integers(0, 256)
        try:
            assert read_image(bytes(damaged)).ndim == 3
        except ImageError:
            refused += 1
    assert refused > 10


def with_chunk(
    kind: bytes, body: bytes, checksum: int | None = None, *, behind_the_pixels: bool = False
) -> bytes:
    """A PNG of the gradient with one more chunk."""
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    whole = encode_png(gradient())
    place = whole.index(b"IEND") - 4 if behind_the_pixels else 33
    return whole[:place] + chunk + whole[place:]


BOMB = zlib.compress(bytes(30_000_000), 9)
DAMAGED_METADATA = {
    "packed text that is a bomb": (b"zTXt", b"Comment\0\0" + BOMB),
    "international text that is a bomb": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "unknown packing": (b"zTXt", b"Comment\0\7" + BOMB),
    "packed rubbish": (b"zTXt", b"Comment\0\0rubbish"),
    "no keyword": (b"tEXt", b""),
    "no end of the keyword": (b"iTXt", b"x" * 1000),
    "text that is no UTF-8": (b"iTXt", b"Title\0\0\0\0\0\xff\xfe"),
    "rubbish as EXIF": (b"eXIf", b"Exif\0\0 rubbish"),
    "EXIF cut short": (b"eXIf", b"MM\0*\0\0\0\x08\0\x09\x01"),
    "rubbish as profile": (b"tEXt", b"Raw profile type exif\0\nexif\n 9\nzz"),
    "rubbish as XMP": (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0\xff<<tiff:Orientation="9'),
}


@pytest.mark.parametrize("behind_the_pixels", [False, True])
@pytest.mark.parametrize(("kind", "body"), DAMAGED_METADATA.values(), ids=DAMAGED_METADATA.keys())
def test_damaged_metadata_does_not_keep_the_pixels_from_being_read(
    kind: bytes, body: bytes, behind_the_pixels: bool
) -> None:
    file = with_chunk(kind, body, behind_the_pixels=behind_the_pixels)
    assert np.array_equal(read_image(file), gradient())


def test_a_wrong_checksum_of_text_does_not_keep_the_pixels_from_being_read() -> None:
    assert np.array_equal(read_image(with_chunk(b"tEXt", b"Title\0x", checksum=1)), gradient())


def test_many_bombs_of_text_cost_little_memory() -> None:
    whole = encode_png(gradient())
    body = b"Comment\0\0" + zlib.compress(bytes(1_000_000), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    tracemalloc.start()
    try:
        assert np.array_equal(read_image(whole[:33] + chunk * 500 + whole[33:]), gradient())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150_000_000


def test_a_native_tile_is_left_as_it_is() -> None:
    tile = gradient(28, 28)
    assert np.array_equal(to_native(tile), tile)


def test_a_large_tile_is_made_native_as_pathmnist_was() -> None:
    tile = gradient(224, 224)
    expected = Image.fromarray(tile).resize((28, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(to_native(tile), np.asarray(expected))


def test_the_central_square_is_taken() -> None:
    wide = np.zeros((28, 84, 3), dtype=np.uint8)
    wide[:, 28:56] = 200
    assert set(to_native(wide).flat) == {200}
    assert set(to_native(np.ascontiguousarray(wide.transpose(1, 0, 2))).flat) == {200}


@pytest.mark.parametrize("shape", [(27, 100, 3), (100, 27, 3), (1, 1, 3)])
def test_an_edge_below_28_px_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ImageError, match="at least 28 px"):
        to_native(np.zeros(shape, dtype=np.uint8))


def test_png_is_the_same_every_time_and_keeps_pixels_and_text() -> None:
    text = {"Description": "tumour", "Title": "Schleim, Übung \u4e2d"}
    file = encode_png(gradient(), text)
    assert file == encode_png(gradient(), text)
    assert np.array_equal(read_image(file), gradient())
    image = Image.open(io.BytesIO(file))
    assert isinstance(image.info, dict)
    assert {key: str(image.info[key]) for key in text} == text


def test_a_png_of_fewer_colours_is_smaller_and_near_and_keeps_its_text() -> None:
    whole = upscale(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), 112)
    exact, fewer = encode_png(whole, {"Title": "t"}), encode_png(whole, {"Title": "t"}, 9, 64)
    assert len(fewer) < 0.6 * len(exact)
    picture = read_image(fewer)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) <= 64
    assert np.abs(picture.astype(float) - whole).mean() < 20
    assert Image.open(io.BytesIO(fewer)).info["Title"] == "t"


def test_a_footer_stands_below_everything_and_leaves_the_rest_as_it_is() -> None:
    tiles, captions = [gradient(56, 56)] * 2, ["a", "b"]
    plain, legend = contact_sheet(tiles, captions, 2), contact_sheet(tiles, captions, 2, "synthetic")
    assert np.array_equal(legend[: len(plain)], plain)
    assert (legend[len(plain) :] < 128).any()


def test_enlarging_keeps_the_colours() -> None:
    tile = np.full((28, 28, 3), (200, 120, 180), dtype=np.uint8)
    large = upscale(tile, 224)
    assert large.shape == (224, 224, 3)
    assert (large == tile[0, 0]).all()


def test_enlarging_to_the_same_size_gives_an_independent_copy() -> None:
    tile = gradient(28, 28)
    copy = upscale(tile, 28)
    copy[:] = 0
    assert tile.any()


def test_a_contact_sheet_shows_every_tile_in_reading_order() -> None:
    tiles = [np.full((56, 56, 3), shade, dtype=np.uint8) for shade in (10, 60, 110, 160, 210)]
    sheet = contact_sheet(tiles, ["a", "b", "c", "d", "a caption far too long for its tile"], columns=3)
    found = {}
    for shade in (10, 60, 110, 160, 210):
        y, x = np.nonzero((sheet == shade).all(axis=2))
        exact = [(b, a) for b, a in zip(y, x, strict=True) if (sheet[b : b + 56, a : a + 56] == shade).all()]
        found[shade] = next(
            place for place in exact if (sheet[place[0] : place[0] + 56, place[1] : place[1] + 56]).size
        )
    assert found[10][0] == found[60][0] == found[110][0] < found[160][0] == found[210][0]
    assert found[10][1] == found[160][1] < found[60][1] == found[210][1] < found[110][1]
    below_second_row = sheet[found[160][0] + 56 :]
    assert (below_second_row < 128).any(), "captions are drawn"


@pytest.mark.parametrize(("tiles", "captions", "columns"), [(0, 0, 3), (2, 1, 3), (1, 1, 0)])
def test_a_contact_sheet_of_nothing_is_a_mistake(tiles: int, captions: int, columns: int) -> None:
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet([gradient(28, 28)] * tiles, ["x"] * captions, columns)
