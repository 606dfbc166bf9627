"""The rules of `cdo_ad.audit.check` about images that show the same: equal ones, and near duplicates across the split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdo_ad.audit.statistics import Facts, pixels_digest
from cdo_ad.data.near_copies import equal_groups, near_limit, near_pairs
from cdo_ad.types import GOOD, Sample

if TYPE_CHECKING:
    from cdo_ad.audit.rules import Rules

__all__ = ["find_alike"]

MAY_BE_EQUAL = 8
"""Bits: images whose hashes differ by more cannot have equal pixels, in whatever format they are stored."""


def find_alike(rules: Rules, samples: Sequence[Sample], facts: dict[Path, Facts]) -> None:
    """Add the findings about images that show the same.

    Args:
        rules: of one product, after the split.
        samples: its readable images.
        facts: of each.
    """
    paths = [sample.path for sample in samples]
    if len(paths) < 2:
        return
    hashes = np.stack([facts[path].perceptual for path in paths])
    limit = near_limit(hashes) if rules.limit is None else rules.limit  # as the split has it
    rules.report.limits[rules.category] = limit
    if limit < 0 and len(paths) >= 20:
        rules.add("near-unknown", "note", "the images are so alike that near duplicates cannot be told from others")
    pairs = [(paths[i], paths[j], distance) for i, j, distance in near_pairs(hashes, max(limit, MAY_BE_EQUAL))]
    # only what looks the same is decoded in full and compared by each pixel
    candidates = dict.fromkeys(path for a, b, distance in pairs if distance <= MAY_BE_EQUAL for path in (a, b))
    in_order = [path for path in paths if path in candidates]
    digests = [pixels_digest(path) for path in in_order]
    _equal(rules, in_order, digests)
    digest = dict(zip(in_order, digests, strict=True))
    near = [(a, b, d) for a, b, d in pairs if d <= limit and (d > MAY_BE_EQUAL or digest[a] != digest[b])]
    _near(rules, paths, near)


def _equal(rules: Rules, paths: Sequence[Path], digests: Sequence[bytes]) -> None:
    conflict, across, within = [], [], []
    for group in equal_groups(digests):
        for i, j in pairwise(group):
            a, b = paths[i], paths[j]
            line = f"{rules.name(a)} = {rules.name(b)}"
            if (rules.type_of[a] == GOOD) != (rules.type_of[b] == GOOD):
                conflict.append(line)
            elif rules.split_of[a] != rules.split_of[b]:
                across.append(line)
            else:
                within.append(line)
    if conflict:
        rules.add(
            "label-conflict",
            "error",
            f"{len(conflict)} pair(s) of equal images, one labelled good and one a defect: remove the wrong one",
            conflict,
        )
    if across:
        rules.add(
            "equal-across",
            "error",
            f"{len(across)} pair(s) of equal images in different parts of fit, "
            "calibration and test: figures and thresholds would be too good; remove one of each",
            across,
        )
    if within:
        rules.add("equal-within", "warning", f"{len(within)} pair(s) of equal images: remove one of each", within)


def _near(rules: Rules, paths: Sequence[Path], pairs: Sequence[tuple[Path, Path, int]]) -> None:
    rules.report.near += [(rules.name(a), rules.name(b), distance) for a, b, distance in pairs]
    for first, second, consequence in (
        ("fit", "test", "figures of the test flatter the model"),
        ("calibration", "test", "the false alarms measured flatter the threshold"),
        ("fit", "calibration", "the threshold may be too low for new parts: more false alarms than promised"),
    ):
        found = [(a, b) for a, b, _ in pairs if {rules.split_of[a], rules.split_of[b]} == {first, second}]
        if found:
            ordered = [(a, b) if rules.split_of[a] == first else (b, a) for a, b in found]
            seen = len({b for _, b in ordered})
            of = sum(rules.split_of[path] == second for path in paths)
            rules.add(
                f"near-{first}-{second}",
                "warning",
                f"{seen} of {of} {second} images show nearly what a {first} "
                f"image shows ({len(found)} pairs, such as the same part under another exposure): "
                f"{consequence}; keep all images of a part on one side",
                (f"{rules.name(a)} = {rules.name(b)}" for a, b in ordered),
            )
    inside = [(a, b) for a, b, _ in pairs if rules.split_of[a] == rules.split_of[b]]
    if inside:
        rules.add(
            "near-within",
            "note",
            f"{len(inside)} pairs inside fit, calibration or test show nearly the same: "
            "there are fewer different parts than images",
            (f"{rules.name(a)} = {rules.name(b)}" for a, b in inside),
        )
