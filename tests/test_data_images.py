"""The decoder: rows of (what is in the file, what must come out), and what it must refuse."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from cdo_ad.data import decode as images
from cdo_ad.data.decode import (
    as_rgb,
    decode_image,
    decode_reduced,
    image_size,
    list_images,
    read_image,
    read_mask,
    write_png16,
)
from cdo_ad.errors import DataError, ImageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (7, 9, 3), dtype=np.uint16)
GRAY16 = RGB16[..., 0]
GRAY = RGB[..., 0]
ALPHA = RNG.integers(0, 256, (7, 9), dtype=np.uint8)
ALPHA[0, :3] = 0, 128, 255


def gray(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=2).astype(np.uint8)


def over_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.floor(colour * (alpha[..., None] / 255.0) + 0.5).astype(np.uint8)


def pillow(array: np.ndarray, format: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    image, file = Image.fromarray(array), io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, format, **options)
    return file.getvalue()


def png16(array: np.ndarray, **options: object) -> bytes:
    planes = 1 if array.ndim == 2 else array.shape[2]
    file = io.BytesIO()
    writer = png.Writer(
        array.shape[1], array.shape[0], bitdepth=16, greyscale=planes < 3, alpha=planes in (2, 4), **options
    )
    writer.write(file, array.reshape(len(array), -1).tolist())
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def palette(transparency: bytes | None = None) -> bytes:
    image = Image.fromarray(GRAY % 3).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 255, 255, 255])
    file = io.BytesIO()
    image.save(file, "PNG", **({} if transparency is None else {"transparency": transparency}))
    return file.getvalue()


PALETTE = np.array([[10, 20, 30], [200, 100, 50], [255, 255, 255]], np.uint8)[GRAY % 3]
BITS = (RGB[..., 0] > 127).astype(np.uint8) * 255
RGBA = np.dstack([RGB, ALPHA])
LA16 = np.dstack([GRAY16, ALPHA.astype(np.uint16) * 257])
PLANES = np.moveaxis(RGB16, 2, 0)
TURNED = [(274, 3, 1, 6, True)]

DECODES: list[tuple[str, bytes, np.ndarray]] = [
    ("png rgb", pillow(RGB), RGB),
    ("png gray", pillow(GRAY), gray(GRAY)),
    ("png rgba", pillow(RGBA), over_black(RGB, ALPHA)),
    ("png gray and alpha", pillow(np.dstack([GRAY, ALPHA])), over_black(gray(GRAY), ALPHA)),
    ("png palette", palette(), PALETTE),
    ("png palette, transparent", palette(bytes([255, 0, 128])), over_black(PALETTE, np.array([255, 0, 128])[GRAY % 3])),
    ("png 1 bit", pillow(BITS, mode="1"), gray(BITS)),
    ("png rgb, one colour transparent", pillow(RGB, transparency=tuple(int(v) for v in RGB[0, 0])), None),  # see below
    ("png 16-bit gray", png16(GRAY16), gray(GRAY16 >> 8)),
    ("png 16-bit rgb", png16(RGB16), RGB16 >> 8),
    ("png 16-bit gray and alpha", png16(LA16), over_black(gray(GRAY16 >> 8), ALPHA)),
    ("png 16-bit rgba", png16(np.dstack([RGB16, ALPHA.astype(np.uint16) * 257])), over_black(RGB16 >> 8, ALPHA)),
    ("png 16-bit gray, one transparent", png16(GRAY16, transparent=int(GRAY16[2, 2])), None),
    ("tiff rgb", tiff(RGB, photometric="rgb"), RGB),
    ("tiff 16-bit gray", tiff(GRAY16), gray(GRAY16 >> 8)),
    ("tiff 16-bit gray, other byte order", tiff(GRAY16, byteorder=">"), gray(GRAY16 >> 8)),
    ("tiff 16-bit gray, 0 is white", tiff(GRAY16, photometric="miniswhite"), gray((65535 - GRAY16) >> 8)),
    ("tiff 8-bit gray, 0 is white", tiff(GRAY, photometric="miniswhite"), gray(255 - GRAY)),
    ("tiff 16-bit rgb", tiff(RGB16, photometric="rgb"), RGB16 >> 8),
    ("tiff 16-bit rgb, zip", tiff(RGB16, photometric="rgb", compression="zlib", predictor=True), RGB16 >> 8),
    ("tiff 16-bit rgb, big", tiff(RGB16, photometric="rgb", bigtiff=True), RGB16 >> 8),
    ("tiff 16-bit rgb, big, other byte order", tiff(RGB16, photometric="rgb", bigtiff=True, byteorder=">"), RGB16 >> 8),
    ("tiff 16-bit planes", tiff(PLANES, photometric="rgb", planarconfig="separate"), RGB16 >> 8),
    (
        "tiff 16-bit planes, turned",
        tiff(PLANES, photometric="rgb", planarconfig="separate", extratags=TURNED),
        np.rot90(RGB16 >> 8, -1),
    ),
    (
        "tiff 16-bit gray and alpha",
        tiff(LA16, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]),
        over_black(gray(GRAY16 >> 8), ALPHA),
    ),
    (
        "tiff 16-bit gray, big, 0 is white",
        tiff(GRAY16, photometric="miniswhite", bigtiff=True, byteorder=">"),
        gray((65535 - GRAY16) >> 8),
    ),
    (
        "tiff 16-bit gray and alpha, 0 is white",
        tiff(LA16, photometric="miniswhite", planarconfig="contig", extrasamples=["unassalpha"]),
        over_black(gray((65535 - GRAY16) >> 8), ALPHA),
    ),
    ("tiff turned", tiff(RGB, photometric="rgb", extratags=TURNED), np.rot90(RGB, -1)),
    ("bmp rgb", pillow(RGB, "BMP"), RGB),
    ("bmp gray", pillow(GRAY, "BMP"), gray(GRAY)),
    ("webp lossless", pillow(RGB, "WEBP", lossless=True), RGB),
    ("webp lossless, alpha", pillow(RGBA, "WEBP", lossless=True, exact=True), over_black(RGB, ALPHA)),
    ("one pixel", pillow(RGB[:1, :1]), RGB[:1, :1]),
]
# a colour named as transparent: exactly the pixels of that colour become black
for place, (name, data, expected) in enumerate(DECODES):
    if expected is None and "rgb" in name:
        DECODES[place] = (name, data, np.where((RGB - RGB[0, 0]).any(axis=2)[..., None], RGB, 0))
    elif expected is None:
        DECODES[place] = (name, data, gray(np.where(GRAY16 - GRAY16[2, 2], GRAY16 >> 8, 0)))


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in DECODES], ids=[row[0] for row in DECODES])
def test_decodes_exactly(data: bytes, expected: np.ndarray) -> None:
    result = decode_image(data)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous and result.flags.writeable
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_close_to_what_was_written(mode: str) -> None:
    y, x = np.mgrid[:40, :60]
    smooth = np.stack([4 * x, 5 * y, 2 * x + 2 * y], axis=2).astype(np.uint8)
    expected = np.asarray(Image.fromarray(smooth).convert(mode).convert("RGB")).astype(int)
    result = decode_image(
        pillow(smooth, "JPEG", mode=mode, quality=98, subsampling=0)
        if mode != "L"
        else pillow(smooth, "JPEG", mode="L", quality=98)
    )
    assert np.abs(result - expected).max() <= 6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, format: str, orientation: int) -> None:
    """A camera that turned the image by `orientation` is undone: every corner is where the eye saw it."""
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:24, :16], upright[:24, 16:], upright[24:, :16], upright[24:, 16:] = 250, 170, 90, 10
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: np.rot90(upright, 2),
        4: upright[::-1],
        5: np.transpose(upright, (1, 0, 2)),
        6: np.rot90(upright),
        7: np.rot90(np.transpose(upright, (1, 0, 2)), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"turned.{format.lower()}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, format, exif=exif)
    result = read_image(path)
    assert result.shape == upright.shape
    corners = result[[4, 4, -4, -4], [4, -4, 4, -4], 0].astype(int)
    assert np.abs(corners - [250, 170, 90, 10]).max() < 12
    assert image_size(path) == (48, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_lose_the_image() -> None:
    data = pillow(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(data).shape == RGB.shape


@pytest.mark.parametrize("ending", [".PNG", ".Png", ".png", ".jpg", ".dat"])
def test_the_content_decides_not_the_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(pillow(RGB))
    np.testing.assert_array_equal(read_image(path), RGB)


def corrupt_png() -> bytes:
    data = bytearray(pillow(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8)))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


NOISE = RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


REFUSED: list[tuple[str, bytes, str]] = [
    ("jpeg, truncated", pillow(NOISE, "JPEG")[:-900], "truncated"),
    ("png, truncated", pillow(NOISE)[:-3000], "truncated"),
    ("png, a byte flipped", corrupt_png(), "damaged"),
    ("tiff, truncated", tiff(NOISE, photometric="rgb", compression="zlib")[:-4000], "truncated"),
    ("tiff planes, truncated", tiff(PLANES, photometric="rgb", planarconfig="separate")[:-100], "cannot be read"),
    ("bmp, truncated", pillow(NOISE, "BMP")[:-3000], "truncated"),
    ("webp, truncated", pillow(NOISE, "WEBP", lossless=True)[:-3000], "damaged"),
    ("text", b"this is no image", "not a JPEG"),
    ("a gif", pillow(GRAY, "GIF"), "not a JPEG"),
    ("nothing but a signature", b"\xff\xd8\xff", "not a JPEG"),
    ("tiff, float", tiff(GRAY16.astype(np.float32)), "floating-point"),
    ("tiff, signed", tiff(GRAY16.astype(np.int16)), "signed or 32-bit"),
    ("tiff, 32 bit", tiff(GRAY16.astype(np.uint32)), "signed or 32-bit"),
    ("transparent everywhere", pillow(np.dstack([RGB, np.zeros_like(ALPHA)])), "alpha is 0 everywhere"),
]


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refuses_with_the_name_of_the_file(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "part 7.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(30000, 20000), (90000, 90000)])
def test_refuses_images_above_the_limit(width: int, height: int) -> None:
    with pytest.raises(ImageError, match="larger than 500,000,000 pixels"):
        decode_image(png_header(width, height))


def test_takes_line_scan_images_above_the_limit_of_pillow() -> None:
    line_scan = Image.new("1", (20000, 9500))
    file = io.BytesIO()
    line_scan.save(file, "PNG")
    image = images._open(file.getvalue(), "line scan")  # the header passes; 190 million pixels are not decoded here
    assert isinstance(image, Image.Image) and image.size == (20000, 9500)


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: None, "no such file"),
    (lambda path: path.write_bytes(b""), "empty"),
    (lambda path: path.mkdir(), "cannot be read"),
], ids=["missing", "empty", "folder"])  # fmt: skip
def test_refuses_what_is_no_file(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "x.png"
    make(path)
    for reader in (read_image, read_mask, image_size):
        with pytest.raises(ImageError, match=message):
            reader(path)


SOFT = np.array([[0, 127, 128, 255]], np.uint8)
BINARY = np.array([[0, 1, 1, 0]], np.uint8)
IDS = np.array([[0, 1, 2, 0]], np.uint8)


def indexed(values: np.ndarray, colours: list[int]) -> bytes:
    image = Image.fromarray(values).convert("P")
    image.putpalette(colours)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


MASKS: list[tuple[str, bytes, list[int]]] = [
    ("soft", pillow(SOFT), [0, 0, 1, 1]),
    ("0 and 255", pillow(BINARY * 255), [0, 1, 1, 0]),
    ("0 and 1", pillow(BINARY), [0, 1, 1, 0]),
    ("1 bit", pillow(BINARY * 255, mode="1"), [0, 1, 1, 0]),
    ("label ids up to 64", pillow(np.array([[0, 1, 3, 64]], np.uint8)), [0, 1, 1, 1]),
    ("above 64 it is soft", pillow(np.array([[0, 1, 3, 65]], np.uint8)), [0, 0, 0, 0]),
    ("all zero", pillow(BINARY * 0), [0, 0, 0, 0]),
    ("16 bit, full range", png16(np.array([[0, 32767, 32768, 65535]], np.uint16)), [0, 0, 1, 1]),
    ("16 bit, 0 and 255", png16(BINARY.astype(np.uint16) * 255), [0, 1, 1, 0]),
    ("16 bit, 0 and 1", png16(BINARY.astype(np.uint16)), [0, 1, 1, 0]),
    ("tiff 16 bit", tiff(BINARY.astype(np.uint16) * 65535), [0, 1, 1, 0]),
    ("rgb soft", pillow(np.dstack([SOFT] * 3)), [0, 0, 1, 1]),
    ("one colour", pillow(np.dstack([BINARY * 255, BINARY * 0, BINARY * 0])), [0, 1, 1, 0]),
    ("alpha", pillow(np.dstack([BINARY * 0 + 255, BINARY * 255])), [0, 1, 1, 0]),
    ("palette of colours: ids", indexed(IDS, [0] * 3 + [128, 0, 0] + [64, 0, 0]), [0, 1, 1, 0]),
    ("palette of grays: grays", indexed(np.array([[1, 0, 0, 1]], np.uint8), [255] * 3 + [0] * 3), [0, 1, 1, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in MASKS], ids=[row[0] for row in MASKS])
def test_masks(tmp_path: Path, data: bytes, expected: list[int]) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(data)
    mask = read_mask(path)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, [np.array(expected, bool)])


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(pillow(BINARY))
    assert read_mask(path, shape=(1, 4)).shape == (1, 4)
    with pytest.raises(ImageError, match=r"mask.png: the mask is 4x1 pixels but its image is 1x4"):
        read_mask(path, shape=(4, 1))


def test_a_defect_of_one_pixel_survives(tmp_path: Path) -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    mask[700, 300] = 255
    path = tmp_path / "mask.png"
    path.write_bytes(pillow(mask))
    assert np.argwhere(read_mask(path)).tolist() == [[700, 300]]


ARRAYS: list[tuple[str, np.ndarray, np.ndarray]] = [
    ("gray", GRAY, gray(GRAY)),
    ("gray, one channel", GRAY[..., None], gray(GRAY)),
    ("gray and alpha", np.dstack([GRAY, ALPHA]), over_black(gray(GRAY), ALPHA)),
    ("rgb", RGB, RGB),
    ("rgba", RGBA, over_black(RGB, ALPHA)),
    ("rgba, opaque", np.dstack([RGB, np.full_like(ALPHA, 255)]), RGB),
    ("rgb16", RGB16, RGB16 >> 8),
    ("gray16, other byte order", GRAY16.astype(">u2"), gray(GRAY16 >> 8)),
    ("bool", BITS > 0, gray(BITS)),
    ("not contiguous", RGB[::-1, ::2], RGB[::-1, ::2]),
]


@pytest.mark.parametrize(("array", "expected"), [row[1:] for row in ARRAYS], ids=[row[0] for row in ARRAYS])
def test_arrays(array: np.ndarray, expected: np.ndarray) -> None:
    result = as_rgb(array)
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("array", "message"), [
    (RGB / 255.0, "float64"),
    (RGB.astype(np.float32), "float32"),
    (RGB.astype(np.int64), "int64"),
    (RGB[None], r"\(1, 7, 9, 3\)"),
    (np.moveaxis(RGB, 2, 0), "channels last"),
    (GRAY[0], r"\(9,\)"),
    (RGB[:0], r"\(0, 9, 3\)"),
    (np.dstack([RGB, np.zeros_like(ALPHA)]), "alpha is 0 everywhere"),
])  # fmt: skip
def test_arrays_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        as_rgb(array)


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "C.TIFF", ".hidden.png", "notes.txt", "d.WebP", "sub/e.bmp", ".cache/f.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["C.TIFF", "a.png", "b.JPG", "d.WebP"]
    assert [path.name for path in list_images(tmp_path, recursive=True)] == [
        "C.TIFF",
        "a.png",
        "b.JPG",
        "d.WebP",
        "e.bmp",
    ]
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "missing")


def test_write_png16(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    write_png16(path, GRAY16)
    width, height, rows, info = png.Reader(bytes=path.read_bytes()).read()
    assert (width, height, info["bitdepth"], info["planes"]) == (9, 7, 16, 1)
    np.testing.assert_array_equal(np.array([list(row) for row in rows]), GRAY16)
    with pytest.raises(ImageError, match="uint16"):
        write_png16(path, GRAY)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="cannot be written"):
        write_png16(tmp_path / "missing" / "map.png", GRAY16)


# ---- a quick look


@pytest.mark.parametrize(("size", "least", "expected"), [
    ((512, 640), 256, (256, 320)), ((511, 640), 256, (511, 640)), ((2048, 1100), 128, (256, 138)),
    ((90, 70), 256, (90, 70)),
])  # fmt: skip
def test_a_jpeg_is_reduced_as_far_as_allowed(size, least, expected) -> None:
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([127 + 100 * np.sin(x / 90), 127 + 100 * np.cos(y / 70), (x + y) % 256 * 0 + 60], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    reduced, whole = decode_reduced(buffer.getvalue(), "x", least)
    assert (reduced.shape[:2], whole) == (expected, size)
    full = Image.fromarray(decode_image(buffer.getvalue()))
    means = np.asarray(full.resize((expected[1], expected[0]), Image.Resampling.BOX)).astype(int)
    assert np.abs(means - reduced).mean() < 1.5


def test_a_reduced_image_is_upright_and_a_truncated_one_is_found() -> None:
    image = np.zeros((1024, 600, 3), np.uint8)
    image[:100] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", exif=exif)
    reduced, whole = decode_reduced(buffer.getvalue(), "x", 256)
    assert whole == (600, 1024) and reduced.shape == (300, 512, 3)
    assert reduced[:, -40:].mean() > 240 and reduced[:, :400].mean() < 10
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode_reduced(buffer.getvalue()[:-900], "x", 256)
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    assert decode_reduced(png.getvalue(), "x", 64)[0].shape == image.shape
