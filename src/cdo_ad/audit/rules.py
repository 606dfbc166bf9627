"""The rules of `cdo_ad.audit.check`: from what is known of the files to findings, a function of one product's images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cdo_ad.audit.alike import find_alike
from cdo_ad.audit.findings import CheckReport, Finding, Level
from cdo_ad.audit.listing import Listing
from cdo_ad.audit.statistics import Facts
from cdo_ad.calibration import images_needed
from cdo_ad.config import Config
from cdo_ad.data.split import split_good
from cdo_ad.errors import DataError
from cdo_ad.files import relative_name
from cdo_ad.types import GOOD, Sample

__all__ = ["Rules"]

MULTIPLE = 32
"""Input sizes are proposed as multiples of this: the deepest level's stride times two."""
OUTLIER = 5.0
"""A value this many robust standard deviations (1.4826 median deviations) from the median is unusual."""
LEAST_FACTOR = 1.5
"""... if it is also this many times larger or smaller than the median."""
LOW_BITS = 64
"""A 16-bit file whose upper bytes are all below this uses at most 14 bits, the lower ones."""


class Rules:
    """The findings of one product, added to a report."""

    def __init__(self, root: Path, config: Config, report: CheckReport, category: str) -> None:
        """Begin; `category` is put before every sentence where it is not empty."""
        self.root, self.config, self.report = root, config, report
        self.prefix = f"{category}: " if category else ""
        self.category = category
        self.split_of: dict[Path, str] = {}
        self.type_of: dict[Path, str] = {}
        self.limit: int | None = None

    def add(self, kind: str, level: Level, text: str, files: Iterable[str | Path] = ()) -> None:
        """Note a finding."""
        names = tuple(name if isinstance(name, str) else self.name(name) for name in files)
        self.report.findings.append(Finding(kind, level, self.prefix + text, names))

    def name(self, path: Path) -> str:
        """The path relative to the data set."""
        return relative_name(path, self.root)

    def judge(self, samples: Sequence[Sample], facts: dict[Path, Facts]) -> None:
        """Every rule on the images that can be read."""
        self._split(samples, facts)
        self._masks(samples, facts)
        find_alike(self, samples, facts)
        self._kinds(samples, facts)
        self._light(samples, facts)

    def unreadable(self, images: dict[Path, str], masks: dict[Path, str]) -> None:
        """Files that cannot be decoded, with the decoder's own words."""
        if images:
            first = next(iter(images.values()))
            self.add("unreadable", "error", f"{_images(len(images))} cannot be read; the first: {first}", images)
        if masks:
            first = next(iter(masks.values()))
            self.add("unreadable-mask", "error", f"{len(masks)} mask(s) cannot be read; the first: {first}", masks)

    def partners(self, listing: Listing) -> None:
        """What a data set that its reader refuses lacks."""
        if files := listing.orphan_masks:
            self.add("orphan-mask", "error", f"{len(files)} mask(s) without an image: add it or remove the mask", files)
        if files := listing.orphan_images:
            self.add(
                "orphan-image",
                "error",
                f"{_images(len(files))} of a defect without a mask where others of "
                "its type have one: add it, or remove all masks of that type",
                files,
            )
        if files := listing.unlabelled:
            self.add(
                "unlabelled",
                "error",
                f"{_images(len(files))} outside the folders of the types: move each to the folder of its type",
                files,
            )
        if files := listing.trained_defects:
            self.add(
                "defect-in-training",
                "error",
                f"{_images(len(files))} in a training folder that is not good: "
                "only good images are trained on; move them to the test folder",
                files,
            )

    def _split(self, samples: Sequence[Sample], facts: dict[Path, Facts]) -> None:
        """Fit, calibration and test as a training would have them, and whether there are enough good images."""
        config = self.config
        good = [sample for sample in samples if sample.split != "test"]
        hashes = (
            {sample.path: facts[sample.path].perceptual for sample in good} if config.keep_copies_together else None
        )
        try:
            if config.few and any(sample.split == "train" for sample in good):  # holds none out
                fit, held_out = [sample for sample in good if sample.split == "train"], []
            else:
                parted = split_good(good, config.calibration_share, config.calibration_minimum, config.seed, hashes)
                fit, held_out, self.limit = parted.fit, parted.calibration, parted.limit
        except DataError as error:
            self.add("too-few-good", "error", str(error))
            fit, held_out = good, []
        for split, part in (("fit", fit), ("calibration", held_out)):
            self.split_of.update({sample.path: split for sample in part})
            self.report.counts[split] += len(part)
        self.type_of = {sample.path: sample.defect_type for sample in samples}
        test = [sample for sample in samples if sample.split == "test"]
        self.split_of.update({sample.path: "test" for sample in test})
        self.report.counts["test_good"] += sum(not sample.anomalous for sample in test)
        self.report.counts["test_defect"] += sum(sample.anomalous for sample in test)
        needed = images_needed(config.false_alarm_rate)
        if held_out and len(held_out) < needed:
            self.add(
                "too-few-good",
                "error",
                f"a false-alarm rate of {config.false_alarm_rate:g} needs {needed} good "
                f"calibration images, {len(held_out)} would be held out of {len(good)}: add good images, or "
                f"ask for a rate of {1 / (len(held_out) + 1):.3f} or more, or train with  --few  and without a promise",
            )
        elif good and len(fit) < 50:
            promise = ", and the threshold promises no false-alarm rate" if config.few else ""
            self.add(
                "few-good",
                "note",
                f"{len(fit)} good images would be trained on{promise}: 50 or more make a useful model",
            )

    def _masks(self, samples: Sequence[Sample], facts: dict[Path, Facts]) -> None:
        wrong, empty, tiny, need = [], [], [], 0.0
        for sample in samples:
            fact = facts[sample.path]
            if fact.mask is None:
                continue
            if (fact.mask.height, fact.mask.width) != (fact.height, fact.width):
                wrong.append(sample.path)
            elif not fact.mask.largest_region:
                empty.append(sample.path)
            else:
                scale = fact.height / self.config.image_height * fact.width / self.config.image_width
                share = fact.mask.largest_region / scale  # pixels of the training image that the defect covers
                if share < 1:
                    tiny.append(sample.path)
                    need = max(need, share**-0.5)
        if wrong:
            self.add(
                "mask-size",
                "error",
                f"{_images(len(wrong))} whose mask has another size: export masks at the image's own size",
                wrong,
            )
        if empty:
            self.add(
                "mask-empty",
                "warning",
                f"{_images(len(empty))} of a defect whose mask is empty: pixel figures "
                "would count the defect as good; draw the mask, or move good images to good/",
                empty,
            )
        if tiny:
            height, width = (int(-(-side * need // MULTIPLE) * MULTIPLE) for side in self.config.image_size)
            self.add(
                "tiny-defect",
                "warning",
                f"{_images(len(tiny))} whose defect is smaller than a pixel at "
                f"{self.config.image_height} x {self.config.image_width} and may not be seen: "
                f"--set image_height={height} --set image_width={width} keeps them all",
                tiny,
            )

    def _kinds(self, samples: Sequence[Sample], facts: dict[Path, Facts]) -> None:
        """Sizes, shapes, depths and colours that are mixed."""
        if not samples:
            return
        fit = [s.path for s in samples if s.split != "test"] or [s.path for s in samples]
        sizes = {(facts[s.path].height, facts[s.path].width) for s in samples}
        if len(sizes) > 1:
            low, high = min(sizes, key=np.prod), max(sizes, key=np.prod)
            self.add(
                "mixed-sizes",
                "note",
                f"images of {len(sizes)} sizes, {low[1]} x {low[0]} to {high[1]} x {high[0]} "
                "(width x height): all are brought to one size, so their scale differs",
            )
        shape = float(np.median([np.log(facts[path].width / facts[path].height) for path in fit]))
        stretched = [
            s.path for s in samples if abs(np.log(facts[s.path].width / facts[s.path].height) - shape) > np.log(1.25)
        ]
        if stretched:
            self.add(
                "mixed-shapes",
                "warning",
                f"{len(stretched)} of {len(samples)} images are more than 1.25 times wider or narrower in shape than "
                "the middle one of those to train on: resizing stretches them differently; crop all alike",
                stretched,
            )
        for kind, word, value in (
            ("mixed-depths", "bits a sample", lambda fact: fact.bits),
            ("mixed-colours", "colour or gray", lambda fact: "colour" if fact.colour else "gray"),
        ):
            values = [value(facts[s.path]) for s in samples]
            usual = max(set(values), key=lambda v: (values.count(v), str(v)))
            odd = [s.path for s, v in zip(samples, values, strict=True) if v != usual]
            if odd:
                self.add(
                    kind,
                    "warning",
                    f"{_images(len(odd))} of another kind ({word}) than the usual {usual}: "
                    "a model may learn the kind instead of the defect; take all alike",
                    odd,
                )

    def _light(self, samples: Sequence[Sample], facts: dict[Path, Facts]) -> None:
        paths = [sample.path for sample in samples]
        low = {
            path: 8 + int(np.ceil(np.log2(facts[path].largest + 1)))
            for path in paths
            if facts[path].bits > 8 and facts[path].largest < LOW_BITS
        }
        if low:
            bits = max(low.values())
            self.add(
                "low-bits",
                "error",
                f"{_images(len(low))} of 16 bits use the lower {bits} only and decode nearly "
                f"black: shift them up by {16 - bits} bits (multiply by {2 ** (16 - bits)})",
                low,
            )
        rest = [p for p in paths if p not in low]
        light = _deviations({p: facts[p].mean for p in rest})
        sharp = _deviations({p: facts[p].sharpness for p in rest})
        dark = [p for p in rest if facts[p].dark > 0.95 or light[p] < -OUTLIER]
        bright = [p for p in rest if facts[p].bright > 0.95 or light[p] > OUTLIER]
        blurred = [p for p in rest if sharp[p] < -OUTLIER]
        for kind, files, text in (
            ("under-exposed", dark, "far darker than the others or nearly black"),
            ("over-exposed", bright, "far brighter than the others or nearly white"),
            ("blurred", blurred, "far less sharp than the others"),
        ):
            if files:
                good = [p for p in files if self.type_of[p] == GOOD]
                self.add(
                    kind,
                    "warning" if good else "note",
                    f"{_images(len(files))} {text}: look at them, and take out those that production would not give",
                    files,
                )

    def mislabelled(self, scores: dict[Path, float]) -> None:
        """Good images whose image score lies far above that of the others."""
        if len(scores) < 10:
            return
        values = np.array(list(scores.values()))
        median = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - median))) or 1e-12
        odd = sorted((p for p in scores if scores[p] > median + OUTLIER * spread), key=lambda p: -scores[p])
        if odd:
            self.add(
                "mislabelled",
                "warning",
                f"{_images(len(odd))} labelled good score far above the other good ones: "
                "look whether they show a defect",
                odd,
            )


def _deviations(values: dict[Path, float]) -> dict[Path, float]:
    """Of each positive value, the robust standard deviations of its logarithm from the median; 0 near it."""
    if not values:
        return {}
    logs = np.log(np.maximum(list(values.values()), 1e-9))
    away = logs - np.median(logs)
    spread = max(1.4826 * float(np.median(np.abs(away))), 1e-3)
    scaled = np.where(np.abs(away) > np.log(LEAST_FACTOR), away / spread, 0.0)
    return dict(zip(values, scaled.tolist(), strict=True))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
