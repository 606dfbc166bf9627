"""The kind of an image's file, and what is new about a file of another kind."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cdo_ad.data import read_image
from cdo_ad.data.kinds import ImageKind, TrainedKinds, kind_of, read_with_kind
from cdo_ad.errors import ImageError

RNG = np.random.default_rng(0)
COLOUR = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))
GRAY = COLOUR.convert("L")


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def kind(image: Image.Image = COLOUR, format: str = "PNG", **options: object) -> ImageKind:
    return kind_of(encoded(image, format, **options), "x")


@pytest.mark.parametrize("quality", [1, 5, 10, 25, 49, 50, 51, 75, 85, 90, 95, 97, 99, 100])
@pytest.mark.parametrize("image", [COLOUR, GRAY], ids=["colour", "gray"])
def test_the_quality_of_a_jpeg_is_that_it_was_written_with(quality: int, image: Image.Image) -> None:
    assert kind(image, "JPEG", quality=quality).quality == quality


@pytest.mark.parametrize(("subsampling", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_the_chroma_of_a_jpeg(subsampling: int, name: str) -> None:
    assert kind(format="JPEG", subsampling=subsampling).subsampling == name
    assert kind(GRAY, "JPEG").subsampling is None


@pytest.mark.parametrize(("format", "options", "lossy"), [
    ("PNG", {}, False), ("BMP", {}, False), ("PPM", {}, False), ("GIF", {}, False), ("TIFF", {}, False),
    ("TIFF", {"compression": "tiff_lzw"}, False), ("TIFF", {"compression": "jpeg"}, True), ("JPEG", {}, True),
    ("WEBP", {}, True), ("WEBP", {"lossless": True}, False), ("AVIF", {}, True), ("JPEG2000", {}, False),
    ("JPEG2000", {"irreversible": True, "quality_layers": [20]}, True),
])  # fmt: skip
def test_which_compressions_change_pixels(format: str, options: dict[str, object], lossy: bool) -> None:
    found = kind(format=format, **options)
    assert (found.format, found.lossy, found.colour, found.bits) == (format, lossy, True, 8)
    assert (found.height, found.width) == (48, 64)


def test_depth_colour_and_size(tmp_path: Path) -> None:
    deep = np.asarray(GRAY).astype(np.uint16) << 8
    assert kind(Image.fromarray(deep)).bits == 16 and not kind(Image.fromarray(deep)).colour
    file = io.BytesIO()
    tifffile.imwrite(file, np.dstack([deep] * 3), photometric="rgb")
    assert kind_of(file.getvalue(), "x").bits == 16
    assert kind_of(b"P5 2 1 1023\n" + bytes(4), "x").bits == 10
    exif = Image.Exif()
    exif[274] = 6
    turned = kind(format="JPEG", exif=exif)
    assert (turned.height, turned.width) == (64, 48)
    path = tmp_path / "gray.png"
    path.write_bytes(encoded(GRAY.convert("RGB")))
    image, found = read_with_kind(path)
    assert not found.colour and kind_of(path.read_bytes(), "x").colour  # the pixels tell more than the header
    np.testing.assert_array_equal(image, read_image(path))
    with pytest.raises(ImageError, match=r"broken\.png: not a"):
        kind_of(b"nothing", "broken.png")


PNG = [kind(), kind(COLOUR.resize((70, 52)))]
JPEG = [kind(format="JPEG", quality=q) for q in (85, 92)]
DIFFERENCES: list[tuple[str, list[ImageKind], ImageKind, str | None]] = [
    ("the same", PNG, PNG[0], None),
    (
        "png, jpeg",
        PNG,
        kind(format="JPEG", quality=90),
        "a JPEG of quality 90, chroma 4:2:0 (training: lossless files)",
    ),
    ("png, webp", PNG, kind(format="WEBP"), "a lossy WEBP (training: lossless files)"),
    ("png, bmp", PNG, kind(format="BMP"), None),
    ("jpeg, png", JPEG, PNG[0], "a lossless PNG (training: lossy files, JPEG quality 85 to 92)"),
    ("jpeg, a little better", JPEG, kind(format="JPEG", quality=95), None),
    (
        "jpeg, far worse",
        JPEG,
        kind(format="JPEG", quality=60),
        "a JPEG of quality 60, chroma 4:2:0 (training: quality 85 to 92)",
    ),
    (
        "jpeg, other chroma",
        JPEG,
        kind(format="JPEG", quality=90, subsampling=0),
        "a JPEG with chroma 4:4:4 (training: 4:2:0)",
    ),
    ("colour, gray", PNG, kind(GRAY), "gray (training: colour images)"),
    ("gray, colour", [kind(GRAY)], PNG[0], "colour (training: gray images)"),
    ("both, gray", [*PNG, kind(GRAY)], kind(GRAY), None),
    (
        "8 bits, 16",
        [kind(GRAY)],
        kind(Image.fromarray(np.zeros((48, 64), np.uint16))),
        "16 bits a sample (training: 8)",
    ),
    ("a little larger", PNG, kind(COLOUR.resize((90, 67))), None),
    ("far larger", PNG, kind(COLOUR.resize((128, 96))), "128 x 96 pixels (training: 64 to 70 on the longer side)"),
    ("another shape", PNG, kind(COLOUR.resize((64, 64))), "width / height 1.00 (training: 1.33 to 1.35)"),
    (
        "several things",
        PNG,
        kind(GRAY, "JPEG", quality=80),
        "a JPEG of quality 80 (training: lossless files); gray (training: colour images)",
    ),
]


@pytest.mark.parametrize(
    ("trained", "new", "text"), [row[1:] for row in DIFFERENCES], ids=[row[0] for row in DIFFERENCES]
)
def test_what_is_new_about_a_file(trained: list[ImageKind], new: ImageKind, text: str | None) -> None:
    kinds = TrainedKinds.of(trained)
    assert kinds.difference(new) == text
    assert TrainedKinds.from_json(json.loads(json.dumps(kinds.to_json()))) == kinds
    assert all(kinds.difference(own) is None for own in trained)
