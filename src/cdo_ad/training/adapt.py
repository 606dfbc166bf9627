"""Feedback of an operator into a run: false alarms become good images, misses become defects to learn.

The run's own images stay in, so that nothing is forgotten. The networks go on from the run's weights for a short while
or not at all; branches are fitted anew, missed defects get a branch of their own (`cdo_ad.method.defect_head`), and all
thresholds follow anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad.bundle import Bundle, check_writable, read_bundle
from cdo_ad.config import Config, training_difference
from cdo_ad.data.listing import list_images
from cdo_ad.data.split import content_digest, fingerprint, group_images
from cdo_ad.errors import BundleError, ConfigError, DataError, needs_extra
from cdo_ad.inference.calibrate import score_images
from cdo_ad.inference.detector import Detector, load
from cdo_ad.inference.engines.base import UNKNOWN
from cdo_ad.provenance import DataRecord, ImageRecord
from cdo_ad.types import Sample

with needs_extra("train", "adapting a run"):
    from cdo_ad.data.defects import read_defects
    from cdo_ad.training.material import Material, material_of
    from cdo_ad.training.train import Machine, make_run

__all__ = ["Change", "adapt", "refit", "require_own_images"]

EPOCHS = 2
RATE_SHARE = 0.25
"""Of the recipe's learning rate."""


@dataclass(frozen=True)
class Change:
    """One group of images before and after."""

    group: str
    """`new good`, `new bad`, or `good`: the run's own good images, which show what is forgotten."""
    images: int
    alarms_before: int
    alarms_after: int
    score_before: float
    """Median image score in units of the threshold of that time."""
    score_after: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def adapt(
    run: Path | str,
    out: Path | str,
    *,
    good: Path | str | None = None,
    bad: Path | str | None = None,
    category: str | None = None,
    epochs: int = EPOCHS,
    device: str = "auto",
) -> tuple[Bundle, list[Change]]:
    """Make a new run from an old one and an operator's corrections.

    Args:
        run: the run folder; its images must still be where they were.
        out: the new run folder; may be `run` itself, whose model is then replaced when all is done.
        good: folder of good images that were called anomalous.
        bad: folder of defects that were missed, with masks, see `cdo_ad.data.defects.read_defects`.
        category: of the good images, in a run of several categories; None lets the model recognise it.
        epochs: passes over all images; 0 leaves the apprentice as it is, which takes a minute or two.
        device: see `cdo_ad.train`.

    Returns:
        The new run, and what changed on the corrections and on the run's own images.

    Raises:
        ConfigError: neither good nor bad images; fewer than no epochs; a category that the run does not have; a run
            that looks at depth.
        DataError: a folder without images, or a defect without a mask.
        BundleError: no run, or its images are gone.
        CalibrationError, TrainingError, OutputError: as in `cdo_ad.train`.
    """
    if good is None and bad is None:
        raise ConfigError("nothing to learn: give --good FOLDER, --bad FOLDER or both")
    if epochs < 0:
        raise ConfigError(f"epochs must be >= 0, got {epochs}")
    bundle, out = read_bundle(run), Path(out)
    bundle.require_images_alone("a folder of corrections")
    check_writable(out)
    require_own_images(bundle)
    detector = load(run, backend="torch", device=device)
    new_good = _good(detector, Path(good), category) if good is not None else []
    new_bad = read_defects(bad) if bad is not None else []
    groups = {
        "new good": new_good,
        "new bad": [(s.path, UNKNOWN) for s in new_bad],
        "good": [(path, bundle.model.names.index(r.category)) for path, r in _own(bundle)],
    }
    before = {name: _judge(detector, files) for name, files in groups.items()}
    config = bundle.config
    if epochs > 0:
        config = config.replace(epochs=epochs, lr=config.lr * RATE_SHARE)
    material = _together(bundle, new_good, new_bad)
    adapted = make_run(
        out, config, material, Machine(device=device), start=bundle, interrupted="discard", keep_apprentice=epochs == 0
    )
    detector = load(out, backend="torch", device=device)
    after = {name: _judge(detector, files) for name, files in groups.items()}
    return adapted, [_change(name, before[name], after[name]) for name in groups if groups[name]]


def refit(run: Path | str, out: Path | str, config: Config, *, device: str = "auto") -> Bundle:
    """Make a run whose apprentice is that of another: branches and thresholds alone are made anew, in a minute or two.

    Args:
        run: the run folder; its images must still be where they were.
        out: the new run folder.
        config: settings that differ from those of `run` in `cdo_ad.config.AFTER_TRAINING` at most.
        device: see `cdo_ad.train`.

    Raises:
        ConfigError: settings that ask for another training.
        BundleError, CalibrationError: as in `adapt`.
    """
    bundle, out = read_bundle(run), Path(out)
    check_writable(out)
    before, now = bundle.config.to_json(), config.to_json()
    if key := training_difference(before, now):
        raise ConfigError(f"{key} was {before[key]!r} and is {now[key]!r}: that needs a training of its own")
    require_own_images(bundle)
    material = material_of(bundle)
    return make_run(
        out, config, material, Machine(device=device), start=bundle, interrupted="discard", keep_apprentice=True
    )


def _good(detector: Detector, folder: Path, category: str | None) -> list[tuple[Path, int]]:
    """The operator's good images and the numbers of their categories."""
    found = [path.resolve() for path in list_images(folder, recursive=True)]
    if not found:
        raise DataError(f"{folder}: holds no images")
    names = detector.categories
    if len(names) == 1:
        return [(path, 0) for path in found]
    if category is None:
        return [(path, names.index(detector.predict_file(path, regions=False).category)) for path in found]
    if category not in names:
        raise ConfigError(f"there is no category {category!r}: this run has {', '.join(names)}")
    return [(path, names.index(category)) for path in found]


def _own(bundle: Bundle) -> list[tuple[Path, ImageRecord]]:
    return [(bundle.data.path(record), record) for record in (*bundle.data.images, *bundle.data.held_out)]


def require_own_images(bundle: Bundle) -> None:
    """Raise BundleError unless the run's images are still there and the same: its branches are fitted on them."""
    for path, record in _own(bundle):
        if not path.is_file():
            raise BundleError(
                f"{path} is gone, and a run is adapted together with the images that it was made from: put them back "
                "there, or train anew with the corrected images among the good ones"
            )
        if content_digest(path) != record.digest:
            raise BundleError(f"{path} is not the image that the run was made from: put that one back, or train anew")
    if not bundle.data.images:
        raise BundleError(f"{bundle.path} names no images: an exported model cannot be adapted, its run can")


def _together(bundle: Bundle, good: Sequence[tuple[Path, int]], bad: Sequence[Sample]) -> Material:
    """The run's material and the corrections; new images keep their full paths, and copies join their group."""
    old, names = bundle.data, bundle.model.names
    known = {record.digest for record in old.images}
    first = 1 + max((record.group for record in (*old.images, *old.held_out)), default=-1)
    new = [
        ImageRecord(name=str(path), digest=content_digest(path), category=names[number], group=first + i)
        for i, (path, number) in enumerate(good)
    ]
    samples = [Sample(path, "train") for path, _ in _own(bundle)] + [Sample(path, "train") for path, _ in good]
    images = [*old.images, *(record for record in new if record.digest not in known)]
    if new and bundle.config.keep_groups_together:
        images = _grouped(old, images, names)
    record = old.model_copy(
        update={
            "images": tuple(images),
            "defects": (
                *old.defects,
                *((str(s.path.resolve()), str(s.mask_path and s.mask_path.resolve())) for s in bad),
            ),
            "fingerprint": fingerprint([*samples, *bad], old.root),
            "adapted_from": old.fingerprint,
        }
    )
    return material_of(bundle, record)


def _grouped(data: DataRecord, images: Sequence[ImageRecord], names: Sequence[str]) -> list[ImageRecord]:
    """The images with groups of near copies found anew, category by category, since corrections may be copies too."""
    found, first = list(images), 1 + max((record.group for record in data.held_out), default=-1)
    for name in names:
        own = [i for i, record in enumerate(images) if record.category == name]
        groups, _ = group_images([data.path(images[i]) for i in own])
        for i, group in zip(own, groups.tolist(), strict=True):
            found[i] = images[i].model_copy(update={"group": first + group})
        first += len(own)
    return found


def _judge(detector: Detector, files: Sequence[tuple[Path, int]]) -> list[tuple[float, bool]]:
    """Image scores in units of the threshold, and decisions."""
    found = []
    for score, (_, number) in zip(score_images(detector.engine, files), files, strict=True):
        category = detector.categories[max(number, 0)]
        own = detector.calibration.of(category)
        found.append((score[0] / own.image_threshold, detector.calibration.decide(score[0], category)))
    return found


def _change(group: str, before: Sequence[tuple[float, bool]], after: Sequence[tuple[float, bool]]) -> Change:
    return Change(
        group,
        len(before),
        sum(alarm for _, alarm in before),
        sum(alarm for _, alarm in after),
        float(np.median([score for score, _ in before])),
        float(np.median([score for score, _ in after])),
    )
