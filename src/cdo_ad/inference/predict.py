"""Judge files, folders and globs: a JSON line and an overlay for each; a wrong file is reported and the rest goes
on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdo_ad.data.marks import write_png
from cdo_ad.data.sources import find_sources
from cdo_ad.errors import CdoError, ConfigError, DataError, ImageError
from cdo_ad.files import append_line, writing
from cdo_ad.inference.detector import Detector
from cdo_ad.inference.items import File, read_items
from cdo_ad.inference.overlay import map16, overlay
from cdo_ad.types import Prediction

__all__ = ["Failure", "predict_files"]

LONGEST_NAME = 200
"""Bytes of a file's name before the endings that are added; file systems take 255."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be judged, or whose overlay could not be written."""

    path: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"path": self.path, "error": self.error}


def expand(patterns: Sequence[str | Path]) -> list[tuple[Path, Path] | Failure]:
    """The files that arguments name: files as they are, folders with all below them, globs.

    Returns:
        (file, its name relative to the folder that was given), in order and each file once; in the place of an
        argument, file or folder that gives no image, a failure.

    Raises:
        ConfigError: an argument that is empty.
    """
    found = find_sources(patterns)
    return [Failure(str(file), name) if isinstance(name, str) else (file, name) for file, name in found.items()]


def predict_files(
    detector: Detector,
    patterns: Sequence[str | Path],
    out: Path | None = None,
    *,
    maps: bool = False,
    category: str | None = None,
    xyz: Path | None = None,
) -> Iterator[Prediction | Failure]:
    """Judge every file that the arguments name.

    Args:
        detector: the calibrated model.
        patterns: see `expand`.
        out: a folder for `predictions.jsonl`, to which each line is added as soon as its image is judged, and for
            `<name>_overlay.png` (and `<name>_map.png`) in the given folder's structure; None writes nothing.
        maps: also write the map as 16-bit PNG.
        category: what all images show, in a run of several categories; None lets the model recognise it.
        xyz: the point cloud of the only image, for a run with depth; None for those in the layout of MVTec 3D-AD, where
            the folders `xyz` and `gt` beside `rgb` are no images then.

    Yields:
        A prediction, or a failure for a file that cannot be read or an overlay that cannot be written, in order.

    Raises:
        ConfigError: a point cloud for several images, or for a run without depth.
        DataError: no argument matches an image.
        OutputError: `out` cannot be written to, or the disk is full; what was judged before is in `predictions.jsonl`.
    """
    wanted = expand(patterns)
    if detector.surface_size is not None:
        wanted = [item for item in wanted if isinstance(item, Failure) or not _beside_rgb(item[0])]
    if xyz is not None and (detector.surface_size is None or len(wanted) > 1):
        raise ConfigError("a point cloud belongs to one image and to a run that was trained with depth: give one image")
    files = [item for item in wanted if not isinstance(item, Failure)]
    if not files:
        raise DataError(next(item.error for item in wanted if isinstance(item, Failure)))
    targets = dict(zip((file for file, _ in files), _targets([name for _, name in files]), strict=True))
    decoded = read_items((File(file, category, xyz) for file, _ in files), detector.surface_size)
    judged = detector.predict_stream(decoded)
    with ExitStack() as stack:
        lines = None
        if out is not None:
            with writing(out):
                out.mkdir(parents=True, exist_ok=True)
                lines = stack.enter_context((out / "predictions.jsonl").open("wb", buffering=0))
        for item in wanted:
            for result in _results(item, judged, detector, None if out is None else (out, targets, maps)):
                if lines is not None:
                    append_line(lines, json.dumps(result.to_json()))
                yield result


def _beside_rgb(file: Path) -> bool:
    """True for point clouds and masks in the layout of MVTec 3D-AD."""
    return file.parent.name in ("xyz", "gt") and (file.parent.parent / "rgb").is_dir()


def _results(
    item: tuple[Path, Path] | Failure,
    judged: Iterator[Any],
    detector: Detector,
    drawing: tuple[Path, dict[Path, Path], bool] | None,
) -> Iterator[Prediction | Failure]:
    if isinstance(item, Failure):
        yield item
        return
    path, _ = item
    result = next(judged)
    if isinstance(result, ImageError):
        yield Failure(str(path), str(result))
        return
    image, prediction = result
    yield prediction
    if drawing is None:
        return
    out, targets, maps = drawing
    try:
        _draw(
            image, prediction, detector.calibration.of(prediction.category).pixel_threshold, out / targets[path], maps
        )
    except (CdoError, OSError) as error:
        yield Failure(str(path), f"{path} was judged, but its overlay cannot be written: {error}")


def _draw(image: Any, prediction: Prediction, threshold: float, file: Path, maps: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_png(file.with_name(f"{file.name}_overlay.png"), overlay(image, prediction, threshold))
    if maps:
        write_png(file.with_name(f"{file.name}_map.png"), map16(prediction.anomaly_map, threshold))


def _targets(names: Sequence[Path]) -> list[Path]:
    """Names without ending, kept apart where two files would share one, and cut where they are too long."""
    stems = [name.with_suffix("") for name in names]
    taken: set[Path] = set()
    targets = []
    for name, stem in zip(names, stems, strict=True):
        target = _short(stem if stems.count(stem) == 1 else name)
        number = 2
        while target in taken:
            target = _short(name.with_name(f"{name.name}_{number}"))
            number += 1
        taken.add(target)
        targets.append(target)
    return targets


def _short(target: Path) -> Path:
    raw = target.name.encode()
    if len(raw) <= LONGEST_NAME:
        return target
    digest = hashlib.sha256(raw).hexdigest()[:12]
    return target.with_name(f"{raw[: LONGEST_NAME - 13].decode(errors='ignore')}_{digest}")
