"""The rules about the images and masks of a category: pure functions from what is known to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from cdo_ad.audit.findings import Finding
from cdo_ad.audit.statistics import Facts
from cdo_ad.audit.subject import Subject, images
from cdo_ad.data.depth import LOW_BITS, low_bits, significant_bits
from cdo_ad.data.kinds import TrainedKinds
from cdo_ad.data.reading import SMALLEST_SIDE
from cdo_ad.types import GOOD

__all__ = ["RULES", "mislabelled"]

MULTIPLE = 32
"""Input sizes are proposed as multiples of this: the deepest level's stride times two."""
OUTLIER = 5.0
"""A value this many robust standard deviations (1.4826 median deviations) from the median is unusual."""
LEAST_FACTOR = 1.5
"""... if it is also this many times larger or smaller than the median."""
STRETCH = 1.25
"""Shapes (width / height) that differ by more than this factor are stretched differently by the resize."""
LEAST_SCORES = 10
"""Fewer good images have no usual score."""


def masks(subject: Subject) -> Iterator[Finding]:
    """Masks of another size than their image, empty ones, and defects smaller than a pixel of the networks' input."""
    wrong, empty, tiny, need = [], [], [], 0.0
    height, width = subject.image_size
    for path, fact in subject.facts.items():
        if fact.mask is None:
            continue
        if (fact.mask.height, fact.mask.width) != (fact.kind.height, fact.kind.width):
            wrong.append(path)
        elif not fact.mask.largest_region:
            empty.append(path)
        else:
            scale = fact.kind.height / height * fact.kind.width / width
            share = fact.mask.largest_region / scale  # pixels of the networks' input that the defect covers
            if share < 1:
                tiny.append(path)
                need = max(need, share**-0.5)
    if wrong:
        text = f"{images(len(wrong))} whose mask has another size: export masks at the image's own size"
        yield subject.finding("mask-size", "error", text, wrong)
    if empty:
        text = (
            f"{images(len(empty))} of a defect whose mask is empty: pixel metrics would count the defect as good; draw "
            "the mask, or move good images to good/"
        )
        yield subject.finding("mask-empty", "warning", text, empty)
    if tiny:
        high, wide = (int(-(-side * need // MULTIPLE) * MULTIPLE) for side in subject.image_size)
        text = (
            f"{images(len(tiny))} whose defect is smaller than a pixel at {height} x {width} and may not be seen: "
            f"--set image_height={high} --set image_width={wide} keeps them all"
        )
        yield subject.finding("tiny-defect", "warning", text, tiny)


def sizes(subject: Subject) -> Iterator[Finding]:
    """Images that are too small, of several sizes, or of another shape than the most."""
    kinds = {path: fact.kind for path, fact in subject.facts.items()}
    small = [path for path, kind in kinds.items() if min(kind.height, kind.width) < SMALLEST_SIDE]
    if small:
        text = (
            f"{images(len(small))} with a side under {SMALLEST_SIDE} pixels, which no model is trained on: "
            "take them out of the folder"
        )
        yield subject.finding("too-small", "error", text, small)
    found = {(kind.height, kind.width) for kind in kinds.values()}
    if len(found) > 1:
        low, high = min(found, key=np.prod), max(found, key=np.prod)
        text = (
            f"images of {len(found)} sizes, {low[1]} x {low[0]} to {high[1]} x {high[0]} (width x height): "
            "all are brought to one size, so their scale differs"
        )
        yield subject.finding("mixed-sizes", "note", text)
    shapes = {path: float(np.log(kind.width / kind.height)) for path, kind in kinds.items()}
    middle = float(np.median([shapes[path] for path in subject.to_train_on or subject.paths])) if shapes else 0.0
    odd = [path for path, shape in shapes.items() if abs(shape - middle) > np.log(STRETCH)]
    if odd:
        text = (
            f"{len(odd)} of {images(len(shapes))} are more than {STRETCH} times wider or narrower in shape than the "
            "middle one of those to train on: resizing stretches them differently; crop all alike"
        )
        yield subject.finding("mixed-shapes", "warning", text, odd)


def file_kinds(subject: Subject) -> Iterator[Finding]:
    """Depths, colours and compressions that are mixed."""
    for kind, word, value in (
        ("mixed-depths", "bits a sample", lambda fact: fact.kind.bits),
        ("mixed-colours", "colour or gray", lambda fact: "colour" if fact.kind.colour else "gray"),
    ):
        odd, usual = _minority(subject, value)
        if odd:
            text = (
                f"{images(len(odd))} of another kind ({word}) than the usual {usual}: "
                "a model may learn the kind instead of the defect; take all alike"
            )
            yield subject.finding(kind, "warning", text, odd)
    if not subject.facts:
        return
    trained = TrainedKinds.of(subject.facts[path].kind for path in subject.to_train_on or subject.paths)
    differences = {
        path: difference
        for path in subject.paths
        if (difference := trained.compression_difference(subject.facts[path].kind)) is not None
    }
    if differences:
        first = next(iter(differences.values()))
        text = (
            f"{images(len(differences))} of another compression than those to train on, the first {first}: "
            "what it changes in an image is taken for a defect; record all alike"
        )
        yield subject.finding("other-compression", "warning", text, differences)


def low_samples(subject: Subject) -> Iterator[Finding]:
    """Files of 16 bits that use the lower ones only."""
    if low := _low(subject):
        used = significant_bits(np.array([subject.facts[path].largest], np.uint8) for path in low)
        yield subject.finding("low-bits", "error", low_bits(used, len(low)) or "", low)


def light(subject: Subject) -> Iterator[Finding]:
    """Images that are far darker, brighter or less sharp than the others."""
    low = set(_low(subject))
    rest = {path: fact for path, fact in subject.facts.items() if path not in low}
    brightness = _deviations({path: fact.mean for path, fact in rest.items()})
    sharp = _deviations({path: fact.sharpness for path, fact in rest.items()})
    dark = [path for path, fact in rest.items() if fact.dark > 0.95 or brightness[path] < -OUTLIER]
    bright = [path for path, fact in rest.items() if fact.bright > 0.95 or brightness[path] > OUTLIER]
    blurred = [path for path in rest if sharp[path] < -OUTLIER]
    defect_of = subject.defect_of
    for kind, files, what in (
        ("under-exposed", dark, "far darker than the others or nearly black"),
        ("over-exposed", bright, "far brighter than the others or nearly white"),
        ("blurred", blurred, "far less sharp than the others"),
    ):
        if files:
            text = f"{images(len(files))} {what}: look at them, and take out those that production would not give"
            any_good = any(defect_of[path] == GOOD for path in files)
            yield subject.finding(kind, "warning" if any_good else "note", text, files)


RULES: tuple[Callable[[Subject], Iterator[Finding]], ...] = (masks, sizes, file_kinds, low_samples, light)
"""All rules of this module but `mislabelled`."""


def mislabelled(subject: Subject, scores: Mapping[Path, float]) -> Iterator[Finding]:
    """Good images whose score lies far above that of the others.

    Args:
        subject: the category.
        scores: of a detector, by good image.
    """
    if len(scores) < LEAST_SCORES:
        return
    values = np.array(list(scores.values()))
    median = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - median))) or 1e-12
    odd = sorted((path for path in scores if scores[path] > median + OUTLIER * spread), key=lambda path: -scores[path])
    if odd:
        text = f"{images(len(odd))} labelled good score far above the other good ones: look whether they show a defect"
        yield subject.finding("mislabelled", "warning", text, odd)


def _low(subject: Subject) -> list[Path]:
    """Files of 16 bits whose largest value needs no more than `LOW_BITS`."""
    return [
        path
        for path, fact in subject.facts.items()
        if fact.kind.bits == 16 and fact.largest.bit_length() + 8 <= LOW_BITS
    ]


def _minority(subject: Subject, value: Callable[[Facts], object]) -> tuple[list[Path], object]:
    """The images whose value is not the most frequent one, and that one."""
    values: dict[Path, object] = {path: value(subject.facts[path]) for path in subject.paths}
    if not values:
        return [], None
    counted: Sequence[object] = list(values.values())
    usual = max(set(counted), key=lambda one: (counted.count(one), str(one)))
    return [path for path, found in values.items() if found != usual], usual


def _deviations(values: Mapping[Path, float]) -> dict[Path, float]:
    """Of each positive value, the robust standard deviations of its logarithm from the median; 0 near it."""
    if not values:
        return {}
    logs = np.log(np.maximum(list(values.values()), 1e-9))
    away = logs - np.median(logs)
    spread = max(1.4826 * float(np.median(np.abs(away))), 1e-3)
    scaled = np.where(np.abs(away) > np.log(LEAST_FACTOR), away / spread, 0.0)
    return dict(zip(values, scaled.tolist(), strict=True))
