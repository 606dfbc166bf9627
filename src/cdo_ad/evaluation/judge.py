"""The one loop over the images of a data set: each is decoded, judged and given its true mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cdo_ad.data.masks import read_mask
from cdo_ad.data.readers.layout import list_categories, read_dataset
from cdo_ad.errors import DataError, ImageError
from cdo_ad.inference.detector import Detector
from cdo_ad.inference.items import File, read_items
from cdo_ad.progress import progress_bar
from cdo_ad.types import MaskArray, Prediction, Sample

__all__ = ["Judged", "judge", "read_samples"]


@dataclass(frozen=True, slots=True)
class Judged:
    """One image of a data set, and what the detector says of it."""

    sample: Sample
    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB."""
    prediction: Prediction
    mask: MaskArray | None
    """(H, W) pixels of the defect; all False for a good image, None for a defect without a mask."""


def read_samples(
    detector: Detector, data: Path | str, layout: str = "auto", category: str | None = None
) -> list[Sample]:
    """The data set that belongs to a detector: for one of several categories, all of them that `data` holds.

    Point clouds are among the samples only for a run that was made with them.

    Args:
        detector: the calibrated model.
        data: the data set's folder.
        layout: see `cdo_ad.read_dataset`.
        category: only this one.

    Raises:
        ConfigError, DataError: as `cdo_ad.read_dataset`; DataError also where `data` holds none of the categories.
    """
    depth = detector.bundle is not None and detector.bundle.config.depth
    return [sample if depth else sample.without_depth() for sample in _read(detector, data, layout, category)]


def _read(detector: Detector, data: Path | str, layout: str, category: str | None) -> list[Sample]:
    if category is not None or len(detector.categories) == 1:
        return read_dataset(data, layout, category)
    there = list_categories(data, layout)
    if not there:
        return read_dataset(data, layout)
    names = [name for name in there if name in detector.categories]
    if not names:
        raise DataError(f"{data}: holds none of the run's categories, which are {', '.join(detector.categories)}")
    return [sample for name in names for sample in read_dataset(data, layout, name)]


def judge(detector: Detector, samples: Sequence[Sample], *, regions: bool = False) -> Iterator[Judged | str]:
    """Judge images, in order; a line in the place of an image or a mask that cannot be read.

    Args:
        detector: the calibrated model. A sample's category is handed to it where it knows it.
        samples: the images.
        regions: find the connected regions of each mask.
    """
    known = detector.categories if len(detector.categories) > 1 else ()
    files = (File(s.path, s.category if s.category in known else None, s.xyz_path) for s in samples)
    items = read_items(files, detector.surface_size)
    with progress_bar() as bar:
        task = bar.add_task("judging images", total=len(samples), note="")
        for sample, found in zip(samples, detector.predict_stream(items, regions=regions), strict=True):
            bar.update(task, advance=1)
            try:
                if isinstance(found, ImageError):
                    raise found
                image, prediction = found
                yield Judged(sample, image, prediction, _mask(sample, (image.shape[0], image.shape[1])))
            except DataError as error:
                yield str(error)


def _mask(sample: Sample, size: tuple[int, int]) -> MaskArray | None:
    if sample.mask_path is not None:
        return read_mask(sample.mask_path, size)
    return None if sample.anomalous else np.zeros(size, dtype=np.bool_)
