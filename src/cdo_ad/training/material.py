"""What a run is made of: good images with their categories, groups and folds, and labelled defects."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle
from cdo_ad.config import Config, least_images
from cdo_ad.conformal import Unit, require_units, units_needed
from cdo_ad.data import read_categories, read_dataset
from cdo_ad.data.region import read_region
from cdo_ad.data.split import by_name, content_digest, fingerprint, group_images, hold_out
from cdo_ad.data.surface import require_xyz
from cdo_ad.errors import CalibrationError, CdoWarning, ConfigError, DataError
from cdo_ad.progress import progress_bar
from cdo_ad.provenance import DataRecord, ImageRecord
from cdo_ad.region import pack_region
from cdo_ad.types import Sample

__all__ = ["Material", "gather", "material_of"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """Good images and labelled defects of a run to be made."""

    record: DataRecord
    """What the run will say of them; the images in the same order."""
    categories: tuple[str, ...]
    """In the order in which the model numbers them."""
    defects: tuple[Sample, ...] = ()
    regions: tuple[str, ...] = ()
    """The packed region of interest of each category, see `cdo_ad.region`; none for whole images."""

    @property
    def paths(self) -> list[Path]:
        """Files of the images to learn from."""
        return [self.record.path(image) for image in self.record.images]

    @property
    def held_out(self) -> list[tuple[Path, int]]:
        """Files of the images that only calibrate, each with its category's number."""
        return [(self.record.path(r), self.categories.index(r.category)) for r in self.record.held_out]

    @property
    def numbers(self) -> IntArray:
        """(N,) the category's number of each image to learn from."""
        return np.array([self.categories.index(image.category) for image in self.record.images], dtype=np.int64)

    def told(self, remark: str) -> Material:
        """The same with a remark for people."""
        return replace(self, record=self.record.model_copy(update={"split": f"{self.record.split}; {remark}"}))

    def inside(self, wanted: Path | str, size: tuple[int, int]) -> Material:
        """The same with the regions of interest at the input size (H, W), see `cdo_ad.data.region.read_region`."""
        files = self.paths
        own = [[files[i] for i in np.flatnonzero(self.numbers == k)] for k in range(len(self.categories))]
        found = [read_region(wanted, size, images, name) for name, images in zip(self.categories, own, strict=True)]
        shares = ", ".join(f"{region.mean():.0%}" for region in found)
        regions = tuple(pack_region(region) for region in found)
        return replace(self, regions=regions).told(f"inspected: {shares} of the image")

    def units(self, places: Sequence[int], category: str) -> IntArray:
        """What counts once in the calibration: of images to learn from, by their places, the number of each's unit."""
        if self.record.units[category] == "image":
            return np.arange(len(places))
        return np.unique([self.record.images[i].group for i in places], return_inverse=True)[1]

    def taught(self, config: Config) -> list[int]:
        """Places of the images that an apprentice learns from.

        In cross-conformal calibration a tenth of each category's units is kept from it, to measure how much too small
        its disagreement is on images that it has seen.
        """
        everything = list(range(len(self.record.images)))
        if config.calibration != "cross" or "disagreement" not in config.branches:
            return everything
        taught: list[int] = []
        for number, name in enumerate(self.categories):
            own = np.flatnonzero(self.numbers == number)
            aside = hold_out(self.units(own.tolist(), name), config.held_out_share, config.seed)
            taught += own[~aside].tolist()
        return sorted(taught)


def gather(
    data: Path, config: Config, layout: str, category: str | None, unified: bool, defects: Sequence[Sample]
) -> Material:
    """Read a data set's good images, find near copies, and hold images out where the settings say so.

    Args:
        data: the data set's folder.
        config: the settings.
        layout: see `cdo_ad.read_dataset`.
        category: see `cdo_ad.read_dataset`.
        unified: all categories of the data set.
        defects: labelled defects to learn from.

    Raises:
        ConfigError: a category of a unified model.
        DataError, ImageError: a data set or an image that cannot be used.
        CalibrationError: too few good images for the false-alarm rate.
    """
    if unified and category is not None:
        raise ConfigError(f"a unified model takes all categories of {data}: leave the category {category!r} out")
    listed = read_categories(data, layout) if unified else [read_dataset(data, layout, category)]
    good = [[_with_depth(s, config) for s in samples if s.split != "test"] for samples in listed]
    defects = [_with_depth(s, config) for s in defects]
    images: list[ImageRecord] = []
    held_out: list[ImageRecord] = []
    units: dict[str, Unit] = {}
    notes = []
    for samples in good:
        own, others, note = _parted(samples, data, config, first=len(images) + len(held_out))
        images += own
        held_out += others
        units[samples[0].category], told = _unit(others or own, config.false_alarm_rate)
        notes.append((f"{samples[0].category}: {note}" if unified else note) + told)
    everything = [s for samples in good for s in samples]
    if not config.depth and all(s.xyz_path for samples in listed for s in samples):
        notes.append("point clouds are not used: --recipe lite0_3d looks at them too")
    record = DataRecord(
        root=str(data.resolve()),
        category=category or ", ".join(sorted({s.category for s in everything})),
        fingerprint=fingerprint([*everything, *defects], data),
        images=tuple(images),
        held_out=tuple(held_out),
        split="; ".join(notes),
        units=units,
        defects=tuple((str(s.path.resolve()), str(s.mask_path and s.mask_path.resolve())) for s in defects),
    )
    categories = tuple(samples[0].category for samples in good)
    return Material(record, categories, tuple(defects))


def _with_depth(sample: Sample, config: Config) -> Sample:
    """The sample as the settings look at it; raises ImageError where they need a point cloud that is missing."""
    if not config.depth:
        return sample.without_depth()
    return sample if sample.xyz_path is not None else replace(sample, xyz_path=require_xyz(sample.path))


def _parted(
    samples: Sequence[Sample], data: Path, config: Config, first: int
) -> tuple[list[ImageRecord], list[ImageRecord], str]:
    """The images of one category to learn from, those that only calibrate, and a line for people."""
    train = by_name([s for s in samples if s.split == "train"])
    own = by_name([s for s in samples if s.split == "calibration"])
    if not train:
        raise DataError(f"{data}: there is no good image to learn from: put some into train/good or good")
    if config.calibration == "cross":
        train, own = by_name([*train, *own]), []  # every good image teaches and calibrates
    least = least_images(config)
    if len(train) < least:
        raise DataError(
            f"{data}: {len(train)} good image(s) cannot make a calibrated detector: give {least} at the least, 19 for "
            "a false-alarm rate of 5 %, 99 for 1 %"
        )
    groups, note = np.arange(len(train)), "near copies were not looked for"
    if config.keep_groups_together:
        with progress_bar() as bar:
            task = bar.add_task("looking for near copies", total=len(train), note="")
            groups, note = group_images([s.path for s in train], lambda: bar.update(task, advance=1))
    aside = np.zeros(len(train), dtype=bool)
    if config.calibration == "held-out" and own:
        note = "the data set's own calibration images are held out"
    elif config.calibration == "held-out":
        aside = hold_out(groups, config.held_out_share, config.seed)
        note = f"{int(aside.sum())} images held out; {note}"
    records = [
        ImageRecord(name=_name(s.path, data), digest=content_digest(s.path), category=s.category, group=first + int(g))
        for s, g in zip(train, groups, strict=True)
    ]
    fit = [record for record, out in zip(records, aside, strict=True) if not out]
    others = [record for record, out in zip(records, aside, strict=True) if out]
    others += [
        ImageRecord(
            name=_name(s.path, data), digest=content_digest(s.path), category=s.category, group=first + len(train) + i
        )
        for i, s in enumerate(own)
    ]
    if config.calibration == "held-out":
        if not others:
            raise CalibrationError(
                "no image can be held out with all of its near copies: use  --set keep_groups_together=false"
            )
        require_units(len(others), config.false_alarm_rate, samples[0].category)
    return fit, others, note


def _unit(records: Sequence[ImageRecord], rate: float) -> tuple[Unit, str]:
    """What counts once: parts, where they are enough for the rate; else images, where these are; and a remark."""
    n, parts = len(records), len({record.group for record in records})
    if parts >= units_needed(rate) or n < units_needed(rate) or parts == n:
        return "group", ""
    warnings.warn(
        f"{n} good images show only {parts} different parts: the false-alarm rate holds for further images of these "
        f"parts; new parts may raise more alarms. For new parts add images of {units_needed(rate)} parts or more",
        CdoWarning,
        stacklevel=2,
    )
    return "image", "; too few parts, so images count one by one"


def _name(path: Path, data: Path) -> str:
    """By the way that leads there: images may be links to another place."""
    return Path(os.path.relpath(path.absolute(), data.absolute())).as_posix()


def material_of(bundle: Bundle, record: DataRecord | None = None) -> Material:
    """What a run was made of, so that another is made of the same.

    Args:
        bundle: the run.
        record: other images and defects than those that the run names.
    """
    data = bundle.data if record is None else record
    regions = tuple(category.region for category in bundle.model.categories)
    return Material(data, bundle.model.names, tuple(_defects(data)), regions if any(regions) else ())


def _defects(record: DataRecord) -> list[Sample]:
    """The labelled defects of a run."""
    return [Sample(Path(image), "test", "defect", Path(mask)) for image, mask in record.defects]
