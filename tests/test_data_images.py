"""The decoder: rows of (what is in the file, what must come out), and what it must refuse."""

from __future__ import annotations

import io
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from cdo_ad.data import as_rgb, decode_image, read_image, read_mask
from cdo_ad.data.decode import decode_reduced, image_size
from cdo_ad.data.depth import low_bits, significant_bits
from cdo_ad.data.headers import open_image
from cdo_ad.data.marks import write_png
from cdo_ad.data.tiff import decode_tiff
from cdo_ad.errors import ConfigError, ImageError

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


def netpbm(values: np.ndarray, largest: int) -> bytes:
    kind = "P5" if values.ndim == 2 else "P6"
    return (
        f"{kind}\n# a camera\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
        + values.astype(">u2").tobytes()
    )


def pages(first: np.ndarray, *others: tuple[np.ndarray, int]) -> bytes:
    """A TIFF of several pages; the number is the kind of each later one: 0 an image, 1 smaller, 4 a mask."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(first, metadata=None)
        for page, kind in others:
            writer.write(page, subfiletype=min(kind, 1), metadata=None)
    smaller, mask = (struct.pack("<HHII", 254, 4, 1, kind) for kind in (1, 4))
    return file.getvalue().replace(smaller, mask if 4 in [kind for _, kind in others] else smaller)


def packed12(values: np.ndarray) -> bytes:
    """A TIFF that says 12 bits a sample: two samples in three bytes, each row begins with a whole byte."""
    rows = []
    for row in values:
        bits = "".join(f"{value:012b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows.append(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)))
    height, width = values.shape
    tags = [
        (256, width),
        (257, height),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(b"".join(rows))),
    ]
    at = 8 + len(b"".join(rows))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", at) + b"".join(rows) + directory + b"\0\0\0\0"


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
    ("ppm", pillow(RGB, "PPM"), RGB),
    ("pgm", pillow(GRAY, "PPM"), gray(GRAY)),
    ("pbm", pillow(BITS, "PPM", "1"), gray(BITS)),
    ("pgm, full 16 bit", netpbm(GRAY16, 65535), gray(GRAY16 >> 8)),
    ("pgm, 12 bit", netpbm(GRAY16 >> 4, 4095), gray(GRAY16 >> 8)),
    ("pgm, 10 bit", netpbm(GRAY16 >> 6, 1023), gray(GRAY16 >> 8)),
    ("pgm up to 1000", netpbm(np.array([[0, 500, 1000]]), 1000), gray(np.array([[0, 127, 255]]))),
    ("pgm, plain, 12 bit", b"P2 2 1 4095\n16 4095\n", gray(np.array([[1, 255]]))),
    ("ppm, full 16 bit", netpbm(RGB16, 65535), RGB16 >> 8),
    ("ppm, 12 bit", netpbm(RGB16 >> 4, 4095), RGB16 >> 8),
    ("jpeg 2000 rgb", pillow(RGB, "JPEG2000"), RGB),
    ("jpeg 2000, 16-bit gray", pillow(GRAY16, "JPEG2000"), gray(GRAY16 >> 8)),
    ("gif, gray", pillow(GRAY, "GIF"), gray(GRAY)),
    ("tiff, a thumbnail as second page", pages(RGB, (RGB[::2, ::2], 1)), RGB),
    ("tiff, a mask as second page", pages(RGB, (GRAY, 4)), RGB),
    (
        "tiff, alpha multiplied already, big",
        tiff(
            np.dstack([RGB16 // 2, np.full_like(GRAY16, 32768)]), photometric="rgb", extrasamples=["assocalpha"],
            bigtiff=True, byteorder=">",
        ),
        (RGB16 // 2) >> 8,
    ),
    ("tiff, 12 bit", packed12(GRAY16 >> 4), gray(GRAY16 >> 8)),
]  # fmt: skip
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


def test_avif_is_close_to_what_was_written() -> None:
    written = pillow(NOISE, "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(decode_image(written).astype(int) - NOISE).max() <= 4


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
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


def test_broken_exif_does_not_lose_the_image_nor_its_orientation() -> None:
    """Pillow warns of it; tests turn warnings into errors, so none gets through."""
    data = pillow(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(data).shape == RGB.shape
    orientation = struct.pack("<HHIHH", 274, 3, 1, 6, 0)
    wrong = struct.pack("<HHII", 282, 2, 4, 0x41414141)  # a resolution in letters: Pillow's exif_transpose stops at it
    broken = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + orientation + wrong + bytes(4)
    assert decode_image(pillow(RGB, "JPEG", exif=broken)).shape == (9, 7, 3)


@pytest.mark.parametrize("orientation", [0, 9, 105])
def test_an_orientation_that_does_not_exist_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)
    path = tmp_path / "a.jpg"
    path.write_bytes(pillow(RGB, "JPEG", exif=exif))
    assert read_image(path).shape == RGB.shape and image_size(path) == RGB.shape[:2]


def test_further_pictures_in_a_jpeg_are_not_read() -> None:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, "MPO", save_all=True, append_images=[Image.fromarray(NOISE[:20, :20])])
    np.testing.assert_array_equal(decode_image(file.getvalue()), decode_image(pillow(NOISE, "JPEG")))


def test_heic_needs_a_plug_in_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(NOISE)).save(file, quality=-1, chroma=444)
    assert np.abs(decode_image(file.getvalue()).astype(int) - NOISE).max() <= 2
    with pytest.raises(ImageError, match="damaged"):
        decode_image(file.getvalue()[:-2000])
    several = io.BytesIO()
    heif = pillow_heif.from_pillow(Image.fromarray(NOISE))
    heif.add_from_pillow(Image.fromarray(255 - NOISE))
    heif.save(several)
    with pytest.raises(ImageError, match="several images"):
        decode_image(several.getvalue())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"part.heic: reading HEIC needs a plug-in: run  pip install 'cdo-ad\[heic\]'"):
        decode_image(file.getvalue(), "part.heic")


# ---- 10 and 12 bits in 16

LOW12 = RGB16 >> 4
BITS12: list[tuple[str, bytes, np.ndarray]] = [
    ("png gray", png16(LOW12[..., 0]), gray(GRAY16 >> 8)),
    ("png rgb", png16(LOW12), RGB16 >> 8),
    ("png rgba", png16(np.dstack([LOW12, np.full_like(GRAY16, 65535)])), RGB16 >> 8),
    ("tiff gray", tiff(LOW12[..., 0]), gray(GRAY16 >> 8)),
    ("tiff rgb", tiff(LOW12, photometric="rgb"), RGB16 >> 8),
    ("tiff rgb, other byte order", tiff(LOW12, photometric="rgb", byteorder=">"), RGB16 >> 8),
    ("tiff rgb, zip", tiff(LOW12, photometric="rgb", compression="zlib", predictor=True), RGB16 >> 8),
    ("tiff planes", tiff(np.moveaxis(LOW12, 2, 0), photometric="rgb", planarconfig="separate"), RGB16 >> 8),
    ("pgm", netpbm(LOW12[..., 0], 65535), gray(GRAY16 >> 8)),
    ("jpeg 2000", pillow(LOW12[..., 0], "JPEG2000"), gray(GRAY16 >> 8)),
    ("a pgm that says 10 bits is taken at its word", netpbm(GRAY16 >> 6, 1023), gray(GRAY16 >> 8)),
    ("a plain pgm that says 12 bits is taken at its word", b"P2 2 1 4095\n16 4095\n", gray(np.array([[1, 255]]))),
    ("8 bits stay as they are", pillow(RGB), RGB),
]


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in BITS12], ids=[row[0] for row in BITS12])
def test_samples_of_12_bits_in_16_are_read_with_the_setting(data: bytes, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_image(data, bits=12), expected)
    turned_off = decode_image(data, bits=16)
    np.testing.assert_array_equal(turned_off, decode_image(data))
    assert expected.max() == turned_off.max() or turned_off.max() < 16


@pytest.mark.parametrize("data", [png16(GRAY16), png16(RGB16), tiff(RGB16, photometric="rgb")])
def test_a_value_above_the_stated_bits_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"samples of 12 bits end at 4095: set the number of bits to 16"):
        decode_image(data, bits=12)


@pytest.mark.parametrize("data", [png16(LA16), tiff(np.dstack([RGB16, GRAY16]), photometric="separated")])
def test_rare_kinds_of_16_bits_need_the_full_range(data: bytes) -> None:
    decode_image(data)
    with pytest.raises(ImageError, match="bits=auto only"):
        decode_image(data, bits=12)


@pytest.mark.parametrize("bits", [7, 17, "12", True, None, 12.0])
def test_bits_out_of_range(bits: object) -> None:
    for call in (lambda: decode_image(pillow(RGB), bits=bits), lambda: as_rgb(RGB, bits=bits)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="bits must be auto or a number from 8 to 16"):
            call()


def test_significant_bits_and_what_to_do() -> None:
    dark = decode_image(png16(GRAY16 >> 6))
    assert significant_bits([dark]) == 10
    assert significant_bits([dark, decode_image(png16(GRAY16 >> 4))]) == 12
    assert significant_bits([dark, decode_image(png16(GRAY16))]) == 16
    assert significant_bits([np.zeros((2, 2), np.uint8)]) == significant_bits([]) == 8
    assert "3 file(s) of 16 bits a sample use the lower 12 only" in str(low_bits(12, 3))
    assert "--set sample_bits=12" in str(low_bits(12, 3))
    assert low_bits(15, 3) is None


def test_a_large_pgm_of_12_bits_is_read_quickly() -> None:
    values = np.tile(GRAY16 >> 4, (200, 200))  # 2.5 million samples: 7 seconds in Pillow
    start = time.process_time()
    decode_image(netpbm(values, 4095))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("ending", [".PNG", ".Png", ".png", ".jpg", ".dat"])
def test_the_content_decides_not_the_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(pillow(RGB))
    np.testing.assert_array_equal(read_image(path), RGB)


def corrupt_png() -> bytes:
    data = bytearray(pillow(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8)))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


LA = np.dstack([GRAY, ALPHA])


def bomb() -> bytes:
    """A TIFF of 16-bit planes, whose first strip unpacks to 50 MB where the tags say 126 bytes."""
    data = tiff(PLANES, photometric="rgb", planarconfig="separate", compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        counts = page.tags["StripByteCounts"].valueoffset
        offsets = page.tags["StripOffsets"].valueoffset
    zeros = zlib.compress(bytes(50_000_000))
    out = bytearray(data + zeros)
    size = "<I" if page.tags["StripByteCounts"].dtype == 4 else "<H"
    out[offsets : offsets + 4] = struct.pack("<I", len(data))
    out[counts : counts + struct.calcsize(size)] = struct.pack(size, len(zeros))
    return bytes(out)


def frames(format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, format, save_all=True, append_images=[Image.fromarray(255 - RGB)])
    return file.getvalue()


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
    ("nothing but a signature", b"\xff\xd8\xff", "not a JPEG"),
    ("tiff, float", tiff(GRAY16.astype(np.float32)), "floating-point"),
    ("tiff, signed", tiff(GRAY16.astype(np.int16)), "signed samples"),
    ("tiff, 32 bit", tiff(GRAY16.astype(np.uint32)), "signed or 32-bit"),
    ("tiff, signed 8 bit", tiff(GRAY.astype(np.int8)), "signed samples"),
    ("tiff, complex", tiff(GRAY.astype(np.complex64)), "complex samples"),
    ("tiff, two channels", tiff(LA, photometric="minisblack", planarconfig="contig"), "holds 2 channels"),
    ("tiff, two planes", tiff(np.moveaxis(LA, 2, 0), photometric="minisblack", planarconfig="separate"), "2 channels"),
    ("tiff, colour and infrared", tiff(RGBA, photometric="rgb", extrasamples=["unspecified"]), "holds 4 channels"),
    (
        "tiff, five channels",
        tiff(np.dstack([RGBA, GRAY]), photometric="minisblack", planarconfig="contig"),
        "holds 5 channels",
    ),
    ("tiff, three pages", tiff(np.stack([GRAY, GRAY, GRAY]), photometric="minisblack"), "several pages"),
    ("tiff, imagej stack", tiff(np.stack([GRAY, GRAY]), imagej=True), "several pages"),
    ("tiff, only a preview first", tiff(RGB, photometric="rgb", subfiletype=1), "only a preview"),
    ("png, animated", frames("PNG"), "several frames"),
    ("gif, animated", frames("GIF"), "several frames"),
    ("webp, animated", frames("WEBP"), "several frames"),
    ("avif, animated", frames("AVIF"), "several frames"),
    ("tiff planes, a bomb", bomb(), "longer than its tags say"),
    (
        "tiff planes, a rare compression",
        tiff(PLANES, photometric="rgb", planarconfig="separate", compression="lzma"),
        "of a compression that is not read",
    ),
    ("pfm", b"Pf\n2 2\n-1.0\n" + bytes(16), "floating-point"),
    ("pgm, truncated", netpbm(GRAY16, 65535)[:-3], "truncated"),
    ("jpeg 2000, truncated", pillow(NOISE, "JPEG2000")[:-4000], "truncated"),
    ("avif, truncated", pillow(NOISE, "AVIF")[:-300], "damaged"),
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
    image = open_image(file.getvalue(), "line scan")  # the header passes; 190 million pixels are not decoded here
    assert image.size == (20000, 9500)


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: None, "no such file"),
    (lambda path: path.write_bytes(b""), "empty"),
    (lambda path: path.mkdir(), "is a folder"),
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


PILLOW: list[tuple[str, Image.Image, np.ndarray]] = [
    ("1", Image.fromarray(BITS).convert("1"), gray(BITS)),
    ("L", Image.fromarray(GRAY), gray(GRAY)),
    ("RGB", Image.fromarray(RGB), RGB),
    ("P", Image.open(io.BytesIO(palette())), PALETTE),
    ("PA", Image.fromarray(PALETTE).convert("P", palette=Image.Palette.ADAPTIVE).convert("PA"), PALETTE),
    ("LA", Image.fromarray(LA), over_black(gray(GRAY), ALPHA)),
    ("RGBA", Image.fromarray(RGBA), over_black(RGB, ALPHA)),
    ("RGBX", Image.fromarray(RGB).convert("RGBX"), RGB),
    ("I;16", Image.fromarray(GRAY16), gray(GRAY16 >> 8)),
    ("I", Image.fromarray(GRAY16.astype(np.int32)), gray(GRAY16 >> 8)),
    ("CMYK", Image.fromarray(RGB).convert("CMYK"), RGB),
]


@pytest.mark.parametrize(("image", "expected"), [row[1:] for row in PILLOW], ids=[row[0] for row in PILLOW])
def test_pillow_images_mean_their_colours_not_their_numbers(image: Image.Image, expected: np.ndarray) -> None:
    result = as_rgb(image)
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_pillow_images_of_other_colour_spaces_are_close(mode: str) -> None:
    y, x = np.mgrid[:40, :60]
    smooth = np.stack([4 * x, 5 * y, 2 * x + 2 * y], axis=2).astype(np.uint8)
    assert np.abs(as_rgb(Image.fromarray(smooth).convert(mode)).astype(int) - smooth).max() <= 6


def test_a_pillow_image_is_what_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(NOISE[:30]).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        np.testing.assert_array_equal(as_rgb(image), read_image(tmp_path / "turned.jpg"))
        assert image.size == (60, 30)  # the user's image stays as it is
    np.testing.assert_array_equal(as_rgb(Image.fromarray(LOW12[..., 0]), bits=12), gray(GRAY16 >> 8))
    (tmp_path / "cut.png").write_bytes(pillow(NOISE)[:-3000])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ImageError, match="truncated"):
        as_rgb(image)


@pytest.mark.parametrize("image", [
    Image.fromarray(GRAY.astype(np.float32)), Image.fromarray(GRAY16.astype(np.int32) * -1),
], ids=["F", "negative I"])  # fmt: skip
def test_pillow_images_without_a_stated_range_are_refused(image: Image.Image) -> None:
    with pytest.raises(ImageError, match="no stated range"):
        as_rgb(image)


def test_arrays_of_12_bits() -> None:
    np.testing.assert_array_equal(as_rgb(LOW12, bits=12), RGB16 >> 8)
    both = np.dstack([LOW12, ALPHA.astype(np.uint16) << 4])
    np.testing.assert_array_equal(as_rgb(both, bits=12), over_black(RGB16 >> 8, ALPHA))
    with pytest.raises(ImageError, match="samples of 12 bits"):
        as_rgb(RGB16, bits=12)


def test_what_is_no_array_is_refused() -> None:
    class OnAnotherDevice:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise TypeError("can't convert cuda tensor")

    for thing, message in ((OnAnotherDevice(), "cuda"), ("a.png", "got"), (None, "got"), ([[1], [1, 2]], "no array")):
        with pytest.raises(ImageError, match=message):
            as_rgb(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(("array", "message"), [
    (RGB / 255.0, "float64"),
    (RGB.astype(np.float32), "float32"),
    (RGB.astype(np.int64), "int64"),
    (RGB[None], r"\(1, 7, 9, 3\): hand in the images of a batch one by one"),
    (np.moveaxis(RGB, 2, 0), "channels last.*move the channels to the end"),
    (GRAY[0], r"\(9,\)"),
    (RGB[:0], r"\(0, 9, 3\)"),
    (np.dstack([RGB, np.zeros_like(ALPHA)]), "alpha is 0 everywhere"),
])  # fmt: skip
def test_arrays_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        as_rgb(array)


def test_maps_are_written_as_16_bit_gray(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    write_png(path, GRAY16)
    width, height, rows, info = png.Reader(bytes=path.read_bytes()).read()
    assert (width, height, info["bitdepth"], info["planes"]) == (9, 7, 16, 1)
    np.testing.assert_array_equal(np.array([list(row) for row in rows]), GRAY16)
    with pytest.raises(ImageError, match="cannot be written"):
        write_png(tmp_path / "missing" / "map.png", GRAY16)


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


def _with_tag(tiff: bytes, tag: int, kind: int, count: int, value: int) -> bytes:
    """A little-endian TIFF with one entry of its first page changed."""
    changed = bytearray(tiff)
    (at,) = struct.unpack_from("<I", changed, 4)
    (entries,) = struct.unpack_from("<H", changed, at)
    for place in range(at + 2, at + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", changed, place)[0] == tag:
            struct.pack_into("<HHII", changed, place, tag, kind, count, value)
    return bytes(changed)


def _planes(height: int = 24, width: int = 18) -> bytes:
    """A TIFF of 16-bit planes, which tifffile reads."""
    buffer = io.BytesIO()
    samples = np.full((3, height, width), 40_000, np.uint16)
    tifffile.imwrite(buffer, samples, photometric="rgb", planarconfig="separate", byteorder="<", metadata=None)
    return buffer.getvalue()


def test_missing_strips_are_no_image() -> None:
    """What lies in memory there would be read, another time something else."""
    whole = _planes()
    assert decode_image(whole, "planes.tif").shape == (24, 18, 3)
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        first = file.pages[0].dataoffsets[0]
    few = whole
    for tag, value in ((273, first), (279, 24 * 18 * 2)):  # one offset and one byte count instead of three
        few = _with_tag(few, tag, 4, 1, value)
    for damaged in (few, _with_tag(few, 284, 3, 1, 257)):  # of a planar configuration that there is not
        with pytest.raises(ImageError, match="strips or tiles are missing"):
            decode_tiff(damaged, "planes.tif", 10**6)


def test_a_size_of_many_numbers_takes_no_memory() -> None:
    """A width of two numbers, times a height of 10^9, would be a tuple of 2 x 10^9."""
    hostile = _with_tag(_with_tag(_planes(), 256, 3, 2, 0x00180018), 257, 4, 1, 10**9)
    with pytest.raises(ImageError, match="its size is no number"):
        decode_image(hostile, "hostile.tif")


def test_colours_by_number_need_their_table() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "L").convert("P").save(buffer, "PNG")
    data = buffer.getvalue()
    start = data.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">I", data, start)
    with pytest.raises(ImageError, match=r"bare\.png"):
        decode_image(data[:start] + data[start + 12 + length :], "bare.png")
