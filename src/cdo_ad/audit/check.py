"""What is wrong with a data set, before any training: every finding at once, each with its remedy.

- An `error` makes a training or its figures wrong, or stops it; a `warning` may; a `note` is worth knowing.
- Near duplicates: two perceptual hashes (256 bits) that differ in unusually few bits for two images of this
  data set. They are blind to exposure, so they find the same part under another light.
- Held-out calibration images are drawn exactly as a training with the same settings draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdo_ad.audit.findings import LEVELS, CheckReport, Finding
from cdo_ad.audit.listing import list_leniently
from cdo_ad.audit.rules import Rules
from cdo_ad.audit.statistics import Facts, gather
from cdo_ad.config import Config
from cdo_ad.data.readers.layout import list_categories, read_dataset
from cdo_ad.errors import ConfigError, DataError
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
        config: the settings of the training that is planned: input size, false-alarm rate, held-out share and
            minimum, seed; default: those of `run`, else the recipe `lite0`.
        layout: see `cdo_ad.data.read_dataset`.
        category: the product; None checks all.
        run: a run folder whose detector judges the good images, to find mislabelled ones.
        device: for that detector.

    Raises:
        ConfigError: for an unknown layout.
        DataError: if the folder is missing or holds no image.
        BundleError: if `run` is no complete run folder.
        MissingExtraError: if the extra `check` is not installed.
    """
    root = Path(data)
    config = _config(run) if config is None else config
    report = CheckReport()
    for name in _categories(root, layout, category):
        rules = Rules(root, config, report, name or "")
        samples = _samples(rules, layout, name)
        facts, images, masks = _gather(samples, config, name)
        rules.unreadable(images, masks)
        readable = [sample for sample in samples if sample.path in facts]
        rules.judge(readable, facts)
        if run is not None:
            rules.mislabelled(_good_scores(Path(run), readable, device))
    report.findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return report


def _gather(
    samples: Sequence[Sample], config: Config, category: str | None
) -> tuple[dict[Path, Facts], dict[Path, str], dict[Path, str]]:
    with progress_bar() as bar:
        task = bar.add_task(f"checking {category or 'images'}", total=len(samples), note="")
        return gather(samples, config.image_size, lambda: bar.update(task, advance=1))


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
        if not root.is_dir() or not list_leniently(root).samples:
            raise
        return [None]


def _samples(rules: Rules, layout: str, category: str | None) -> list[Sample]:
    """As a training reads them; where its reader refuses, all that can be listed, and why it refuses."""
    try:
        return read_dataset(rules.root, layout, category)
    except ConfigError:
        raise
    except DataError as error:
        listing = list_leniently(rules.root, category)
        if not listing.samples:
            raise
        rules.add("layout", "error", f"the data set cannot be read as it is: {error}")
        rules.partners(listing)
        return listing.samples


def _good_scores(run: Path, samples: Sequence[Sample], device: str) -> dict[Path, float]:
    """Image scores of the good images that can be read, by the detector of a run."""
    from cdo_ad.data.reading import read_ahead
    from cdo_ad.inference.detector import load

    detector = load(run, device=device)
    good = [sample.path for sample in samples if not sample.anomalous]
    scores = {}
    with progress_bar() as bar:
        task = bar.add_task("scoring good images", total=len(good), note="")
        for path, image in read_ahead(good):
            bar.update(task, advance=1)
            if isinstance(image, np.ndarray):
                scores[path] = detector.predict(image, regions=False).score
    return scores
