"""Where to inspect: from a mask file, a polygon, or the foreground that good images show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from cdo_ad.data.decode import read_image
from cdo_ad.data.listing import list_images
from cdo_ad.data.masks import read_mask
from cdo_ad.errors import ConfigError, DataError
from cdo_ad.region import resize_region
from cdo_ad.types import MaskArray

__all__ = ["AUTO", "foreground", "read_region"]

AUTO = "auto"
LOOKED = 50
"""Good images that the foreground is looked for in."""
OFTEN = 0.02
"""Share of them that must show foreground at a pixel."""
MARGIN = 1 / 64
"""Of the shorter side, by which the foreground is widened."""
LEAST = 0.01
"""Share of the image that a region must cover."""


def read_region(
    wanted: Path | str, size: tuple[int, int], images: Sequence[Path] = (), category: str = ""
) -> MaskArray:
    """The region of interest of a category.

    Args:
        wanted: a mask file (white is inspected); a folder with a mask file for each category, of its name; a polygon
            `x,y x,y x,y` in shares of width and height, 0..1; or `auto` for the foreground of the good images.
        size: (H, W) of the result.
        images: good images, for `auto`.
        category: its name.

    Raises:
        ConfigError: a polygon that is none. DataError, ImageError: a file that is missing or cannot be read, or a
            region that covers nearly nothing.
    """
    text = str(wanted)
    if text == AUTO:
        region = foreground(images, size)
    elif "," in text and not Path(text).exists():
        region = _polygon(text, size)
    else:
        region = resize_region(read_mask(_file(Path(text), category)), size)
    if region.mean() < LEAST:
        raise DataError(f"--region {text}: it covers less than 1 % of the image: white is what is inspected")
    return region


def foreground(images: Sequence[Path], size: tuple[int, int]) -> MaskArray:
    """Where good images differ from the ground that they show at their border, in two of a hundred or more.

    Args:
        images: good images of one category.
        size: (H, W) of the result.

    Raises:
        ImageError: an image that cannot be read.
    """
    some = images[:: max(1, len(images) // LOOKED)]
    shown = np.zeros(size, dtype=np.int64)
    for path in some:
        gray = Image.fromarray(read_image(path)).convert("L").resize((size[1], size[0]), Image.Resampling.BOX)
        shown += _off_ground(np.asarray(gray, dtype=np.float32))
    often = Image.fromarray(((shown >= max(1, OFTEN * len(some))) * 255).astype(np.uint8))
    radius = max(1, round(MARGIN * min(size)))
    return np.asarray(often.filter(ImageFilter.MaxFilter(2 * radius + 1))) > 0


def _off_ground(gray: npt.NDArray[np.float32]) -> MaskArray:
    """Pixels that differ from the border's median by more than Otsu's threshold of these differences."""
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    away = np.abs(gray - np.median(border))
    counts = np.bincount(away.astype(np.int64).ravel(), minlength=256).astype(np.float64)
    below, values = np.cumsum(counts), np.arange(counts.size)
    mean_below = np.cumsum(counts * values) / np.maximum(below, 1)
    mean_above = (np.sum(counts * values) - np.cumsum(counts * values)) / np.maximum(below[-1] - below, 1)
    between = below * (below[-1] - below) * (mean_below - mean_above) ** 2
    found: MaskArray = away > int(between.argmax())
    return found


def _polygon(text: str, size: tuple[int, int]) -> MaskArray:
    try:
        points = [tuple(float(number) for number in point.split(",")) for point in text.split()]
        fits = len(points) >= 3 and all(len(point) == 2 and 0 <= min(point) <= max(point) <= 1 for point in points)
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(
            f"--region {text}: name a mask file, or three or more corners as shares of width and height, such as "
            '"0.1,0.1 0.9,0.1 0.5,0.9"'
        )
    image = Image.new("1", (size[1], size[0]))
    ImageDraw.Draw(image).polygon([(x * size[1], y * size[0]) for x, y in points], fill=1)
    return np.array(image, dtype=np.bool_)


def _file(path: Path, category: str) -> Path:
    """The mask's file: of a folder, the one that bears the category's name."""
    if not path.is_dir():
        return path
    own = [file for file in list_images(path) if file.stem == category]
    if not own:
        raise DataError(f"--region {path}: there is no mask of the name {category or '(of the category)'}: add it")
    return own[0]
