"""Judge files, folders and globs: a JSON line and an image for each; a wrong file is reported and the rest goes on."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cdo_ad.data.decode import list_images, write_png16
from cdo_ad.errors import DataError, ImageError
from cdo_ad.inference.detector import Detector, read_ahead
from cdo_ad.inference.overlay import map16, overlay
from cdo_ad.types import Prediction

__all__ = ["Failure", "expand", "predict_files"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be judged."""

    path: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"path": self.path, "error": self.error}


def expand(patterns: Sequence[str | Path]) -> list[tuple[Path, Path]]:
    """The files that arguments name: files as they are, folders with all below them, globs.

    Returns:
        (file, its name relative to the folder that was given), in order and each file once.

    Raises:
        DataError: an argument that matches no image.
    """
    found: dict[Path, Path] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            files = [(file, file.relative_to(path)) for file in list_images(path, recursive=True)]
        elif path.is_file():
            files = [(path, Path(path.name))]
        else:
            matches = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 (patterns may be absolute)
            files = [(match, Path(match.name)) for match in matches if match.is_file()]
        if not files:
            raise DataError(f"{pattern}: no image there: name a file, a folder with images or a quoted glob")
        for file, name in files:
            found.setdefault(file, name)
    return list(found.items())


def predict_files(
    detector: Detector, patterns: Sequence[str | Path], out: Path | None = None, *, maps: bool = False
) -> Iterator[Prediction | Failure]:
    """Judge every file that the arguments name.

    Args:
        detector: the calibrated model.
        patterns: see `expand`.
        out: where `<name>_overlay.png` (and `<name>_map.png`) go, in the given folder's structure; None draws nothing.
        maps: also write the map as 16-bit PNG.

    Yields:
        A prediction, or a failure for a file that cannot be read, in order.

    Raises:
        DataError: an argument that matches no image; raised before the first file is judged.
    """
    files = expand(patterns)
    targets = _targets([name for _, name in files])
    threshold = detector.calibration.pixel_threshold
    decoded = ((str(path), image) for path, image in read_ahead(file for file, _ in files))
    for (path, _), target, judged in zip(files, targets, detector.predict_stream(decoded), strict=True):
        if isinstance(judged, ImageError):
            yield Failure(str(path), str(judged))
            continue
        image, prediction = judged
        if out is not None:
            file = out / target
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(overlay(image, prediction, threshold)).save(file.with_name(f"{file.name}_overlay.png"))
            if maps:
                write_png16(file.with_name(f"{file.name}_map.png"), map16(prediction.anomaly_map, threshold))
        yield prediction


def _targets(names: Sequence[Path]) -> list[Path]:
    """Names without ending, kept apart where two files would share one."""
    stems = [name.with_suffix("") for name in names]
    taken: set[Path] = set()
    targets = []
    for name, stem in zip(names, stems, strict=True):
        target = stem if stems.count(stem) == 1 else name
        number = 2
        while target in taken:
            target = name.with_name(f"{name.name}_{number}")
            number += 1
        taken.add(target)
        targets.append(target)
    return targets
