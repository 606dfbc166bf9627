"""The rule about the number of good images: enough for the false-alarm rate, and for a useful model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cdo_ad.audit.findings import Finding
from cdo_ad.audit.subject import Subject
from cdo_ad.config import Config, least_images
from cdo_ad.conformal import units_needed
from cdo_ad.data.split import hold_out

__all__ = ["enough_good_images"]

USEFUL = 50
"""Good images from which on a model is useful."""


def enough_good_images(subject: Subject, group_of: Mapping[Path, int], config: Config) -> Iterator[Finding]:
    """Count the good images, and the different parts that they show.

    Args:
        subject: the category.
        group_of: the group of near copies of each image.
        config: the settings of the training that is planned.
    """
    good = subject.to_train_on
    least = least_images(config)
    if len(good) < least:
        text = f"{len(good)} good image(s) to train on: {least} are needed at the least, {USEFUL} make a useful model"
        yield subject.finding("too-few-good", "error", text)
        return
    calibrating = _calibrating(subject, group_of, config)
    rate, needed = config.false_alarm_rate, units_needed(config.false_alarm_rate)
    parts = len({group_of[path] for path in calibrating})
    if len(calibrating) < needed:
        stops = config.calibration == "held-out"
        so = "no training begins" if stops else "the threshold would be an estimate"
        yield subject.finding(
            "too-few-good",
            "error" if stops else "warning",
            f"a false-alarm rate of {rate:g} needs {needed} good images to calibrate with, there are "
            f"{len(calibrating)}, so {so}: add good images, or ask for a rate of "
            f"{math.ceil(1e3 / (len(calibrating) + 1)) / 1e3:.3f} or more",
        )
    elif parts < needed:
        yield subject.finding(
            "too-few-parts",
            "warning",
            f"{len(calibrating)} good images to calibrate with show {parts} different parts: the false-alarm rate of "
            f"{rate:g} holds for further images of these parts only; for new parts add images of {needed} or more",
        )
    if len(good) < USEFUL:
        text = f"{len(good)} good images would be trained on: {USEFUL} or more make a useful model"
        yield subject.finding("few-good", "note", text)


def _calibrating(subject: Subject, group_of: Mapping[Path, int], config: Config) -> list[Path]:
    """The good images whose scores set the threshold: all, or those that a training would hold out."""
    good = subject.to_train_on
    if config.calibration == "cross":
        return good
    own = [sample.path for sample in subject.samples if sample.split == "calibration"]
    if own:
        return own
    groups = np.unique([group_of[path] for path in good], return_inverse=True)[1]
    held_out = hold_out(groups, config.held_out_share, config.seed)
    return [path for path, out in zip(good, held_out, strict=True) if out]
