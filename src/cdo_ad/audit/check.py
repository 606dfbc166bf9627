"""What is wrong with a data set, before any training: every finding at once, each with its remedy.

- An `error` makes a training or its metrics wrong, or stops it; a `warning` may; a `note` is worth knowing.
- Near copies: images that show the same part again, see `cdo_ad.data.copies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cdo_ad.audit.amount import enough_good_images
from cdo_ad.audit.copies import find_copies
from cdo_ad.audit.files import noticed, partners, unreadable
from cdo_ad.audit.findings import CheckReport, Finding
from cdo_ad.audit.listing import LenientListing, list_leniently
from cdo_ad.audit.rules import RULES, mislabelled
from cdo_ad.audit.statistics import Gathered, gather
from cdo_ad.audit.subject import Subject
from cdo_ad.config import Config
from cdo_ad.data.decode import image_size
from cdo_ad.data.depth import Bits
from cdo_ad.data.input_size import choose_input_size
from cdo_ad.data.readers.layout import list_categories, read_with_notices
from cdo_ad.data.readers.notices import Notice, notices
from cdo_ad.errors import ConfigError, DataError, ImageError
from cdo_ad.progress import progress_bar
from cdo_ad.types import Sample

__all__ = ["CheckReport", "Finding", "check"]


def check(
    data: Path | str,
    config: Config | None = None,
    *,
    layout: str = "auto",
    category: str | None = None,
    run: Path | str | None = None,
    device: str = "auto",
) -> CheckReport:
    """Look at every file of a data set; each image is decoded once.

    Args:
        data: the data set's folder.
        config: the settings of the training that is planned: input size, false-alarm rate, how it calibrates, bits of
            a sample, seed; default: those of `run`, else the recipe `lite0`.
        layout: see `cdo_ad.data.read_dataset`.
        category: which one; None checks all.
        run: a run folder whose detector judges the good images, to find mislabelled ones.
        device: for that detector.

    Raises:
        ConfigError: for an unknown layout.
        DataError: if the folder is missing, unreadable, or holds no image.
        BundleError: if `run` is no complete run folder.
        MissingExtraError: if the extra `check` is not installed.
    """
    root = Path(data)
    config = _config(run) if config is None else config
    names = _categories(root, layout, category)
    return CheckReport.joined([_check_category(root, config, layout, name, run, device) for name in names])


def _check_category(
    root: Path, config: Config, layout: str, category: str | None, run: Path | str | None, device: str
) -> CheckReport:
    listed, told, refusal = _listed(root, layout, category)
    config = _sized(config, listed.samples)
    gathered = _gather(listed.samples, config, category)
    samples = tuple(sample for sample in listed.samples if sample.path in gathered.facts)
    subject = Subject(root, category or "", config.image_size, samples, gathered.facts)
    copies = find_copies(subject)
    findings = [
        *([] if refusal is None else [subject.finding("layout", "error", refusal)]),
        *partners(subject, listed),
        *noticed(subject, told),
        *unreadable(subject, gathered),
        *enough_good_images(subject, copies.group_of, config),
        *(finding for rule in RULES for finding in rule(subject)),
        *copies.findings,
    ]
    if run is not None:
        findings += mislabelled(subject, _good_scores(Path(run), samples, device))
    return CheckReport(tuple(findings), subject.counts(), copies.near, {subject.category: copies.sentence})


def _listed(root: Path, layout: str, category: str | None) -> tuple[LenientListing, list[Notice], str | None]:
    """As a training reads the samples; where its reader refuses, all that can be listed, and why it refuses."""
    try:
        samples, told = read_with_notices(root, layout, category)
    except ConfigError:
        raise
    except DataError as error:
        listing = list_leniently(root, category)
        if not listing.samples:
            raise
        told = notices(root, category, listing.samples, labels_from_folders=True)
        known = [notice for notice in told if notice.kind != "unused"]
        return listing, known, f"the data set cannot be read as it is: {error}"
    return LenientListing(samples, [], [], [], []), told, None


def _sized(config: Config, samples: Sequence[Sample]) -> Config:
    """With the input size that a training would choose, where the settings leave it open."""
    if config.image_height > 0:
        return config
    paths = [sample.path for sample in samples if sample.split != "test"]
    try:
        (height, width), _ = choose_input_size(paths, config.budget)
    except ImageError:  # it is named later; the others tell the size
        readable = [path for path in paths if _has_size(path)]
        (height, width), _ = choose_input_size(readable, config.budget)
    return config.replace(image_height=height, image_width=width)


def _has_size(path: Path) -> bool:
    try:
        return min(image_size(path)) > 0
    except ImageError:
        return False


def _gather(samples: Sequence[Sample], config: Config, category: str | None) -> Gathered:
    bits: Bits = getattr(config, "sample_bits", "auto")
    with progress_bar() as bar:
        task = bar.add_task(f"checking {category or 'images'}", total=len(samples), note="")
        return gather(samples, config.image_size, bits, lambda: bar.update(task, advance=1))


def _config(run: Path | str | None) -> Config:
    if run is None:
        from cdo_ad import recipes

        return recipes.lite0()
    from cdo_ad.bundle import read_bundle

    return read_bundle(run).config


def _categories(root: Path, layout: str, category: str | None) -> Sequence[str | None]:
    if category is not None:
        return [category]
    try:
        return list_categories(root, layout) or [None]
    except ConfigError:
        raise
    except DataError:
        if not list_leniently(root).samples:
            raise
        return [None]


def _good_scores(run: Path, samples: Sequence[Sample], device: str) -> dict[Path, float]:
    """Image scores of the good images that can be read, by the detector of a run."""
    from cdo_ad.inference.detector import load
    from cdo_ad.inference.items import File, read_items

    detector = load(run, device=device)
    good = [sample.path for sample in samples if not sample.anomalous]
    scores = {}
    with progress_bar() as bar:
        task = bar.add_task("scoring good images", total=len(good), note="")
        items = read_items((File(path) for path in good), detector.surface_size)
        for path, result in zip(good, detector.predict_stream(items, regions=False), strict=True):
            bar.update(task, advance=1)
            if not isinstance(result, ImageError):
                scores[path] = result[1].score
    return scores
