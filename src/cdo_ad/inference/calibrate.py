"""Set a run's thresholds anew: for another false-alarm rate, or from other good images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cdo_ad.bundle import Bundle, read_bundle, write_calibration
from cdo_ad.calibration import Calibration
from cdo_ad.conformal import GoodScores, Unit, units_needed
from cdo_ad.data.readers.layout import list_categories, read_dataset
from cdo_ad.data.split import content_digest, group_images
from cdo_ad.errors import CalibrationError, ImageError
from cdo_ad.inference.detector import load
from cdo_ad.inference.engines.base import Engine, Given, infer_with_depth, surface_size
from cdo_ad.inference.items import File, read_items
from cdo_ad.types import Sample

__all__ = ["calibrate", "score_images"]


def calibrate(
    run: Path | str,
    data: Path | str | None = None,
    *,
    false_alarm_rate: float = 0.05,
    layout: str = "auto",
    category: str | None = None,
    device: str = "auto",
) -> Calibration:
    """Set the thresholds of a run and write them into it.

    Args:
        run: the run folder.
        data: other good images, a data set whose training images are taken; None for the scores that the run holds.
        false_alarm_rate: share of good images that may be called anomalous.
        layout: see `cdo_ad.read_dataset`.
        category: the category of the images; None for all that the run has.
        device: see `cdo_ad.load`.

    Raises:
        CalibrationError: too few images for the rate, or images that the run learned from.
        BundleError: no complete run folder. BusyError: another process is writing it.
        DataError, ImageError: a data set or an image that cannot be used.
    """
    bundle = read_bundle(run)
    if data is None:
        made = bundle.calibration.at_rate(false_alarm_rate)
    else:
        samples = _good(bundle, Path(data), layout, category)
        _refuse_learned(bundle, [sample.path for sample in samples])
        engine = load(run, device=device).engine
        scores = score_images(engine, [(s.path, bundle.model.names.index(s.category)) for s in samples])
        fresh = {}
        for name in dict.fromkeys(sample.category for sample in samples):
            own = [i for i, sample in enumerate(samples) if sample.category == name]
            groups, _ = group_images([samples[i].path for i in own])
            unit: Unit = "group" if groups.max() + 1 >= units_needed(false_alarm_rate) else "image"
            count = range(len(own)) if unit == "image" else groups.tolist()
            fresh[name] = GoodScores([scores[i][0] for i in own], [scores[i][1] for i in own], list(count), unit)
        made = Calibration.fit(
            {**bundle.calibration.categories, **fresh},
            false_alarm_rate,
            method="held-out",
            weights_sha256=bundle.weights_sha256,
        ).at_rate(false_alarm_rate)
    write_calibration(bundle.path, made)
    return made


def score_images(engine: Engine, files: Iterable[tuple[Path, int]]) -> list[tuple[float, float]]:
    """Image score and largest map value of good images, as new images get them.

    Args:
        engine: of the model.
        files: each with the number of its category.

    Raises:
        ImageError: an image, or the point cloud that the model needs beside it, that cannot be read.
    """
    listed = list(files)

    def images() -> Iterator[Given]:
        items = read_items((File(path) for path, _ in listed), surface_size(engine))
        for (_, number), item in zip(listed, items, strict=True):
            if isinstance(item.image, ImageError):
                raise item.image
            yield item.image, number, item.surface

    return [(float(out.scores[0]), float(out.maps.max())) for out in infer_with_depth(engine, images())]


def _good(bundle: Bundle, data: Path, layout: str, category: str | None) -> list[Sample]:
    """The good images of a data set, with the run's names of their categories."""
    names = bundle.model.names
    if len(names) == 1:
        found = [s for s in read_dataset(data, layout, category) if s.split != "test"]
        return [Sample(s.path, s.split, category=names[0]) for s in found]
    if category is not None:
        own = read_dataset(data, layout, category if category in list_categories(data, layout) else None)
        return [Sample(s.path, s.split, category=category) for s in own if s.split != "test"]
    there = list_categories(data, layout)
    if not there:
        raise CalibrationError(
            f"{data}: name the category of these images with --category: the run has {', '.join(names)}"
        )
    samples = [s for name in there if name in names for s in read_dataset(data, layout, name) if s.split != "test"]
    if not samples:
        raise CalibrationError(f"{data}: holds none of the run's categories, which are {', '.join(names)}")
    return samples


def _refuse_learned(bundle: Bundle, paths: Sequence[Path]) -> None:
    """By content, so that a copied or moved folder passes no better than the original."""
    learned = {record.digest for record in bundle.data.images}
    seen = [path for path in paths if content_digest(path) in learned]
    if seen:
        raise CalibrationError(
            f"{seen[0]}: the run learned from this image ({len(seen)} of {len(paths)} are such): its score promises "
            "nothing; give other good images, or leave DATA out to use the run's own scores"
        )
