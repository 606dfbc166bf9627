"""From a run folder to one verified model file: uint8 images of any size in, maps and scores out.

- The graph is that of `cdo_ad.deploy.graph_openvino` or `graph_onnx`. Batch, height and width are dynamic.
- The file is written under a temporary name, loaded again by its engine and compared with torch on real good images;
  it takes its name only when maps, scores and every decision agree.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle, locked, read_bundle
from cdo_ad.calibration import ENGINE_TOLERANCE, Calibration
from cdo_ad.data.listing import list_images
from cdo_ad.data.reading import read_ahead
from cdo_ad.deploy.graph_onnx import write_onnx
from cdo_ad.deploy.graph_openvino import openvino_model, save_openvino
from cdo_ad.errors import ConfigError, ExportError, ImageError
from cdo_ad.files import writing
from cdo_ad.inference.artifact import FILES, Metadata
from cdo_ad.inference.engines import load_export
from cdo_ad.inference.engines.base import UNKNOWN, Categories, Engine
from cdo_ad.inference.engines.torch import TorchEngine, load_model
from cdo_ad.provenance import versions
from cdo_ad.spec import ModelSpec

__all__ = ["MAP_TOLERANCE", "SCORE_TOLERANCE", "Agreement", "describe", "export", "spread", "staged", "verify"]

TINY = np.float32(1e-12)
MAP_TOLERANCE = 1e-4
"""Largest difference of two maps, relative to the larger of the map's maximum and the pixel threshold."""
SCORE_TOLERANCE = ENGINE_TOLERANCE
"""Largest difference of two scores, relative to the larger of score and threshold."""
MOST_COMPARED = 100
"""Good images that an export is compared on, evenly spread over all that there are."""
TEMPORARY = ".writing."


@dataclass(frozen=True)
class Agreement:
    """How far an exported model is from its source."""

    images: int
    map_difference: float
    """Largest over the images, relative as in `verify`."""
    score_difference: float
    """Largest over the images, relative as in `verify`."""
    decisions_changed: int
    """Images that are judged otherwise, or as another category."""
    worst: str
    """The image of the largest score difference."""

    @property
    def holds(self) -> bool:
        """True when the exported model may be used in place of its source."""
        return (
            self.map_difference <= MAP_TOLERANCE
            and self.score_difference <= SCORE_TOLERANCE
            and self.decisions_changed == 0
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def export(run: Path | str, to: str = "openvino", *, images: Path | None = None) -> tuple[Path, Agreement]:
    """Write `run`/export/model.xml (and .bin) or model.onnx, and prove that it gives the run's answers.

    Args:
        run: a run folder.
        to: `openvino` or `onnx`.
        images: a folder with good images to compare on; None for the run's own.

    Returns:
        The file, and how well it agrees. An older file of that name is replaced only by a verified one.

    Raises:
        BundleError: `run` is no complete run folder. BusyError: another process is writing it.
        ConfigError: another engine, or a run that looks at depth.
        ExportError: the exported model disagrees, or there is no image to compare on.
        ImageError: an image to compare on cannot be read.
        MissingExtraError: the engine or torch is not installed.
        OutputError: the file cannot be written.
    """
    if to not in FILES:
        raise ConfigError(f"cannot export to {to!r}: choose from {', '.join(FILES)}")
    bundle = read_bundle(run)
    bundle.require_images_alone("an exported model")
    paths = spread(comparison_images(bundle, images), MOST_COMPARED)
    model = load_model(bundle)
    metadata = describe(bundle, "fp32", bundle.model, bundle.calibration)
    target = bundle.path / "export" / FILES[to]
    with staged(target) as file:
        if to == "openvino":
            save_openvino(openvino_model(model, metadata), file)
        else:
            write_onnx(model, metadata, file)
        agreement = verify(TorchEngine(model), load_export(file, device="cpu"), bundle.calibration, paths)
        if not agreement.holds:
            raise ExportError(
                f"the {to} model does not agree with torch, so no file was written: of {agreement.images} images "
                f"{agreement.decisions_changed} decisions differ, maps by up to {agreement.map_difference:.2e} and "
                f"scores by up to {agreement.score_difference:.2e} (at {agreement.worst}; allowed: 0, "
                f"{MAP_TOLERANCE:g}, {SCORE_TOLERANCE:g}); report this with the versions of torch and {to}"
            )
    return target, agreement


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a temporary path for a model file; it and all beside it take their names if the block ends without error.

    Raises:
        BusyError: another process is writing the run. OutputError: the folder cannot be written to.
    """
    with locked(target.parent.parent), writing(target):
        target.parent.mkdir(exist_ok=True)
        for leftover in target.parent.glob(f"{TEMPORARY}*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=target.parent))
        try:
            yield folder / target.name
            # one by one: until the last has its name, the checksums refuse what lies there
            for file in sorted(folder.iterdir()):
                file.replace(target.parent / file.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if not any(target.parent.iterdir()):
                target.parent.rmdir()


def comparison_images(bundle: Bundle, folder: Path | None) -> list[Path]:
    """The good images to compare on: those of a folder, or the run's own that are still there."""
    if folder is not None:
        found = list_images(folder, recursive=True)
        where = str(folder)
    else:
        found = [path for path in bundle.comparison_paths if path.is_file()]
        where = f"the run's good images in {bundle.data_root}"
    if not found:
        raise ExportError(
            f"{where}: no image is there, and an export is not trusted without: give  --images FOLDER  with good "
            "images of this product"
        )
    return found


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the paths, evenly spread."""
    step = max(1.0, len(paths) / count)
    return [paths[int(i * step)] for i in range(min(count, len(paths)))]


def describe(
    bundle: Bundle, precision: Literal["fp32", "int8"], model: ModelSpec, calibration: Calibration
) -> Metadata:
    """What goes into the file: all that the run says of itself but the names and the place of the images."""
    slim = bundle.data.model_copy(update={"root": "", "images": (), "held_out": (), "defects": ()})
    return Metadata(
        precision=precision,
        settings=bundle.config,
        model=model,
        weights_sha256=bundle.weights_sha256,
        calibration=calibration,
        provenance=bundle.provenance.model_copy(update={"data": slim, "exported_with": versions()}),
    )


class Batch(NamedTuple):
    """Images to compare two engines on."""

    name: str
    images: npt.NDArray[np.uint8]
    """(B, H, W, 3) RGB."""
    categories: Categories | None = None


def verify(source: Engine, exported: Engine, calibration: Calibration, paths: Sequence[Path]) -> Agreement:
    """Compare two engines on images, on an odd-sized and an enlarged copy of the first, and on batches.

    Differences are relative to the image's own values, or to the thresholds where these are larger. Far below them a
    map is the tail of an exponential, whose last digits no two engines share, and which decides nothing.

    Args:
        source: the reference.
        exported: the engine to be judged.
        calibration: decides for both.
        paths: image files; at least one.

    Raises:
        ImageError: an image that cannot be read.
    """
    names = list(calibration.categories)
    map_difference, score_difference, changed, worst, count = 0.0, 0.0, 0, "", 0
    for name, batch, given in _batches(paths, len(names)):
        expected, found = source.infer(batch, given), exported.infer(batch, given)
        if found.maps.shape != expected.maps.shape or not np.isfinite(found.maps).all():
            return Agreement(count, float("inf"), float("inf"), changed, name)
        count += len(batch)
        own = [calibration.of(names[int(number)]) for number in expected.categories]
        pixel, image = (np.array([[c.pixel_threshold, c.image_threshold] for c in own], np.float32) + TINY).T
        scale = np.maximum(expected.maps.max(axis=(1, 2)), pixel)[:, None, None]
        map_difference = max(map_difference, float((np.abs(expected.maps - found.maps) / scale).max()))
        scores = np.maximum(expected.scores, image)
        difference = float((np.abs(expected.scores - found.scores) / scores).max())
        if difference >= score_difference:
            score_difference, worst = difference, name
        for one, other in zip(*(zip(o.scores, o.categories, strict=True) for o in (expected, found)), strict=True):
            decisions = [calibration.decide(float(score), names[int(number)]) for score, number in (one, other)]
            changed += int(decisions[0] != decisions[1] or one[1] != other[1])
    return Agreement(count, map_difference, score_difference, changed, worst)


def _batches(paths: Sequence[Path], categories: int) -> Iterator[Batch]:
    """What to compare on; see `verify`."""
    first: npt.NDArray[np.uint8] | None = None
    for path, image in read_ahead(paths):
        if isinstance(image, ImageError):
            raise image
        if first is None:
            first = image
            odd = first[: max(8, first.shape[0] * 2 // 3) | 1, : max(8, first.shape[1] // 2) | 1]
            yield Batch(f"an odd-sized part of {path}", odd[None])
            yield Batch(f"{path} enlarged", first.repeat(3, axis=0).repeat(2, axis=1)[None])
            yield Batch(f"{path} and its mirror image", np.stack([first, first[:, ::-1]]))
            if categories > 1:  # as each of them, and once more to be recognised
                numbers = np.array([*range(categories), UNKNOWN], np.int64)
                yield Batch(f"{path} as each category", np.repeat(first[None], len(numbers), axis=0), numbers)
        yield Batch(str(path), image[None])
