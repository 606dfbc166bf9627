"""Feedback of an operator into a run: false alarms become good images, misses become defects to learn.

The run's own images stay in the training, so that nothing is forgotten; the networks go on from the run's weights for
a short while or not at all, the density is fitted anew, missed defects are learned to be recognised
(`cdo_ad.method.defect_head`), the thresholds are calibrated anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad.bundle import Bundle, check_writable, read_bundle
from cdo_ad.config import Config, training_difference
from cdo_ad.data.decode import list_images
from cdo_ad.data.split import fingerprint
from cdo_ad.errors import BundleError, ConfigError, DataError, needs_extra
from cdo_ad.inference.detector import Detector, calibration_scores, load
from cdo_ad.types import Sample

with needs_extra("train", "adapting a run"):
    from cdo_ad.data.defects import read_defects
    from cdo_ad.training.job import Job, named_defects, run_job

__all__ = ["Change", "adapt", "refit"]

EPOCHS = 2
RATE_SHARE = 0.25
"""Of the recipe's learning rate."""
CALIBRATION_EVERY = 4
"""Of the new good images every fourth joins the calibration, the others the training."""
LEAST_SHARE = 0.1
"""New good images are repeated until they make up this share of the training."""


@dataclass(frozen=True)
class Change:
    """One group of images before and after."""

    group: str
    """`new good`, `new bad`, or `held-out good`: the run's own calibration images, which show what is forgotten."""
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
    epochs: int = EPOCHS,
    device: str = "auto",
) -> tuple[Bundle, list[Change]]:
    """Make a new run from an old one and an operator's corrections.

    Args:
        run: the run folder; its training images must still be where they were.
        out: the new run folder; may be `run` itself, which is then replaced when all is done.
        good: folder of good images that were called anomalous.
        bad: folder of defects that were missed, with masks, see `cdo_ad.data.defects.read_defects`.
        epochs: passes over all images; 0 leaves the apprentice as it is, which takes a minute or two.
        device: see `cdo_ad.training.job.train`.

    Returns:
        The new bundle, and what changed on the corrections and on the old calibration images.

    Raises:
        ConfigError: neither good nor bad images; fewer than no epochs.
        DataError: a folder without images, or a defect without a mask.
        BundleError: no run, or its images are gone.
        CalibrationError, TrainingError: as in `cdo_ad.training.job.train`.
    """
    if good is None and bad is None:
        raise ConfigError("nothing to learn: give --good FOLDER, --bad FOLDER or both")
    if epochs < 0:
        raise ConfigError(f"epochs must be >= 0, got {epochs}")
    bundle, out = read_bundle(run), Path(out)
    check_writable(out)
    new_good = _images(good) if good is not None else []
    new_bad = read_defects(bad) if bad is not None else []
    old_fit, held_out = _own_images(bundle)
    new_held_out = new_good[CALIBRATION_EVERY - 1 :: CALIBRATION_EVERY]
    new_fit = [path for path in new_good if path not in set(new_held_out)]
    groups = {
        "new good": new_good,
        "new bad": [s.path for s in new_bad],
        "held-out good": held_out,
    }
    detector = load(run, backend="torch", device=device)
    before = {name: _judge(detector, paths) for name, paths in groups.items()}
    config = bundle.config
    if epochs > 0:
        config = config.replace(epochs=epochs, lr=config.lr * RATE_SHARE)
    samples = [Sample(path, "train") for path in [*old_fit, *new_good]]
    job = Job(
        out, config, old_fit + _repeated(new_fit, len(old_fit)), held_out + new_held_out,
        [*_own_defects(bundle), *new_bad],
        fingerprint([*samples, *new_bad], bundle.data_root), start=bundle.model_file,
        trained=epochs == 0, device=device,
    )  # fmt: skip
    adapted = run_job(job, {"data": _describe(bundle, new_fit, new_held_out, new_bad, job.fingerprint)})
    detector = load(out, backend="torch", device=device)
    after = {name: _judge(detector, paths) for name, paths in groups.items()}
    return adapted, [_change(name, before[name], after[name]) for name in groups if groups[name]]


def refit(run: Path | str, out: Path | str, config: Config, *, device: str = "auto") -> Bundle:
    """Make a run whose apprentice is that of another: branches and thresholds alone are made anew, in a minute or two.

    Args:
        run: the run folder; its images must still be where they were.
        out: the new run folder.
        config: settings that differ from those of `run` in `cdo_ad.config.AFTER_TRAINING` at most.
        device: see `cdo_ad.training.job.train`.

    Returns:
        The new bundle.

    Raises:
        ConfigError: settings that ask for another training.
        BundleError, CalibrationError: as in `adapt`.
    """
    bundle, out = read_bundle(run), Path(out)
    check_writable(out)
    before, now = bundle.config.to_json(), config.to_json()
    if key := training_difference(before, now):
        raise ConfigError(f"{key} was {before[key]!r} and is {now[key]!r}: that needs a training of its own")
    fit, held_out = _own_images(bundle)
    data = bundle.provenance["data"]
    job = Job(
        out, config, fit, held_out, _own_defects(bundle), data["fingerprint"], start=bundle.model_file, trained=True,
        device=device,
    )  # fmt: skip
    return run_job(job, {"data": data})


def _images(folder: Path | str) -> list[Path]:
    found = list_images(Path(folder), recursive=True)
    if not found:
        raise DataError(f"{folder}: holds no images")
    return [path.resolve() for path in found]


def _own_images(bundle: Bundle) -> tuple[list[Path], list[Path]]:
    """The run's fit and calibration images, which must still be there: without them it would forget."""
    fit = [bundle.data_root / name for name in bundle.provenance["data"]["fit"]]
    held_out = bundle.calibration_paths
    gone = [path for path in [*fit, *held_out] if not path.is_file()]
    if gone or not fit:
        where = gone[0] if gone else bundle.data_root
        raise BundleError(
            f"{where} is gone, and a run is adapted together with the images that it was made from: put them back "
            "there, or train anew with the corrected images among the good ones"
        )
    return fit, held_out


def _own_defects(bundle: Bundle) -> list[Sample]:
    return [Sample(Path(i), "test", "defect", Path(m)) for i, m in bundle.provenance["data"].get("defects", [])]


def _repeated(paths: list[Path], others: int) -> list[Path]:
    """The paths as often as they need to be `LEAST_SHARE` of the training."""
    if not paths:
        return []
    wanted = LEAST_SHARE * others / (1 - LEAST_SHARE)
    return paths * max(1, round(wanted / len(paths)))


def _judge(detector: Detector, paths: Sequence[Path]) -> list[float]:
    """Image scores in units of the threshold: above 1 is an alarm."""
    scores, _ = calibration_scores(detector.runtime, paths)
    return [detector.calibration.settle(score) / detector.calibration.image_threshold for score in scores]


def _change(group: str, before: Sequence[float], after: Sequence[float]) -> Change:
    return Change(
        group,
        len(before),
        sum(score > 1 for score in before),
        sum(score > 1 for score in after),
        float(np.median(before)),
        float(np.median(after)),
    )


def _describe(
    bundle: Bundle, fit: Sequence[Path], held_out: Sequence[Path], bad: Sequence[Sample], new_fingerprint: str
) -> dict[str, Any]:
    """The old description with the new images added, by their full paths."""
    old = bundle.provenance["data"]
    return {
        **old,
        "fingerprint": new_fingerprint,
        "fit": [*old["fit"], *map(str, fit)],
        "calibration": [*old["calibration"], *map(str, held_out)],
        "defects": [*old.get("defects", []), *named_defects(bad)],
        "adapted_from": old["fingerprint"],
    }
