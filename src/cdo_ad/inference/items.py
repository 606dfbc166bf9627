"""Files as a detector takes them: decoded a few ahead, each image with its surface where the model looks at depth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from cdo_ad.data.decode import read_image
from cdo_ad.data.reading import ahead, require_size
from cdo_ad.data.surface import read_surface
from cdo_ad.errors import ImageError
from cdo_ad.types import Float32Array

__all__ = ["File", "Item", "read_items"]


class File(NamedTuple):
    """One file to judge."""

    path: Path
    category: str | None = None
    """None where nobody knows it."""
    xyz: Path | None = None
    """Its point cloud; None for the one in the layout of MVTec 3D-AD, see `cdo_ad.data.surface.find_xyz`."""


class Item(NamedTuple):
    """One image of a stream."""

    name: str
    image: npt.NDArray[Any] | ImageError
    """An array as `Detector.predict` takes it, or the error in its place."""
    category: str | None = None
    """None where nobody knows it."""
    surface: Float32Array | None = None
    """(2, H, W) at the model's input size, see `cdo_ad.data.surface`; None where the model does not look at depth."""


def read_items(files: Iterable[File], surface_size: tuple[int, int] | None) -> Iterator[Item]:
    """Read files in threads, in order; one that fails, or whose point cloud does, gives the error in its place.

    Args:
        files: the images' files.
        surface_size: (H, W) of the surfaces that the model looks at, see `Detector.surface_size`; None for none.
    """

    def read(file: File) -> Item:
        name = str(file.path)
        try:
            image = require_size(read_image(file.path), name)
            surface = None if surface_size is None else read_surface(file.path, surface_size, file.xyz)
        except ImageError as error:
            return Item(name, error, file.category)
        return Item(name, image, file.category, surface)

    return (item for _, item in ahead(read, files))
