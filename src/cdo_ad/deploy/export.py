"""From a run folder to one verified model file: uint8 images of any size in, maps and scores out.

- The graph is built in `cdo_ad.deploy.graph`. Batch, height and width are dynamic.
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
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import ENGINE_TOLERANCE, Calibration
from cdo_ad.data import list_images, read_image
from cdo_ad.deploy.graph import write_onnx, write_openvino
from cdo_ad.errors import ConfigError, ExportError, ImageError
from cdo_ad.inference.artifact import FILES, Metadata, load_runtime
from cdo_ad.inference.detector import read_ahead
from cdo_ad.inference.engines.torch import Runtime, TorchRuntime, load_network
from cdo_ad.provenance import versions

__all__ = ["MAP_TOLERANCE", "SCORE_TOLERANCE", "Agreement", "export", "verify"]

MAP_TOLERANCE = 1e-4
"""Largest difference of two maps, relative to the map's maximum."""
SCORE_TOLERANCE = ENGINE_TOLERANCE
"""Largest relative difference of two scores."""


@dataclass(frozen=True)
class Agreement:
    """How far an exported model is from its source."""

    images: int
    map_difference: float
    """Largest over the images, relative to the map's maximum."""
    score_difference: float
    """Largest over the images, relative."""
    decisions_changed: int
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
        images: a folder with good images to compare on; None for the run's own calibration images.

    Returns:
        The file, and how well it agrees. An older file of that name is replaced only by a verified one.

    Raises:
        BundleError: `run` is no complete run folder.
        ConfigError: another engine.
        ExportError: the exported model disagrees, cannot be made, or there is no image to compare on.
        MissingExtraError: the engine or torch is not installed.
    """
    if to not in FILES:
        raise ConfigError(f"cannot export to {to!r}: choose from {', '.join(FILES)}")
    bundle = read_bundle(run)
    paths = comparison_images(bundle, images)
    network = load_network(bundle.config, bundle.model_file)
    metadata = describe(bundle, "fp32", bundle.calibration)
    build = write_openvino if to == "openvino" else write_onnx
    with staged(bundle.path / "export" / FILES[to]) as file:
        build(network, metadata, file)
        agreement = verify(TorchRuntime(network), load_runtime(file, device="cpu"), bundle.calibration, paths)
        require(agreement, to)
    return bundle.path / "export" / FILES[to], agreement


def require(agreement: Agreement, to: str) -> None:
    """Raise ExportError, with the difference, unless the agreement holds."""
    if not agreement.holds:
        raise ExportError(
            f"the {to} model does not agree with torch, so no file was written: of {agreement.images} images "
            f"{agreement.decisions_changed} decisions differ, maps by up to {agreement.map_difference:.2e} and "
            f"scores by up to {agreement.score_difference:.2e} (at {agreement.worst}; allowed: 0, "
            f"{MAP_TOLERANCE:g}, {SCORE_TOLERANCE:g}); report this with the versions of torch and {to}"
        )


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a temporary path for a model file; it and its weights take their names if the block ends without error."""
    target.parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".writing.", dir=target.parent))
    try:
        yield folder / target.name
        # weights first: at every moment the model file either fits its weights or is refused by its seal
        for file in sorted(folder.iterdir()):
            file.replace(target.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(target.parent.iterdir()):
            target.parent.rmdir()


def comparison_images(bundle: Bundle, folder: Path | None) -> list[Path]:
    """The good images to compare on: those of a folder, or the run's calibration images that are still there."""
    if folder is not None:
        found = list_images(folder, recursive=True)
        where = str(folder)
    else:
        found = [path for path in bundle.calibration_paths if path.is_file()]
        where = f"the run's calibration images in {bundle.data_root}"
    if not found:
        raise ExportError(
            f"{where}: no image is there, and an export is not trusted without: give  --images FOLDER  with good "
            "images of this product"
        )
    return found


def describe(bundle: Bundle, precision: str, calibration: Calibration) -> Metadata:
    """What goes into the file: all of the bundle's JSON but the names and the place of the images."""
    data = bundle.provenance["data"]
    slim = {"root": "", "category": data["category"], "fingerprint": data["fingerprint"], "fit": [], "calibration": []}
    # the source revision of the run stays; the device does not matter to an exported model
    provenance = {**bundle.provenance, "data": slim, "exported_with": versions()}
    return Metadata(precision, bundle.config, calibration, provenance)


def verify(source: Runtime, exported: Runtime, calibration: Calibration, paths: Sequence[Path]) -> Agreement:
    """Compare two engines on images, on an odd-sized and an enlarged copy of the first, and on a batch of two.

    Args:
        source: the reference.
        exported: the engine to be judged.
        calibration: decides for both.
        paths: image files; at least one.

    Raises:
        ImageError: an image that cannot be read.
    """
    map_difference, score_difference, changed, worst, count = 0.0, 0.0, 0, "", 0
    for name, batch in _batches(paths):
        maps, scores = source.infer(batch)
        other_maps, other_scores = exported.infer(batch)
        if other_maps.shape != maps.shape or not np.isfinite(other_maps).all():
            return Agreement(count, float("inf"), float("inf"), changed, name)
        count += len(batch)
        scale = maps.max(axis=(1, 2), keepdims=True) + np.float32(1e-12)
        map_difference = max(map_difference, float((np.abs(maps - other_maps) / scale).max()))
        difference = float((np.abs(scores - other_scores) / (np.abs(scores) + np.float32(1e-12))).max())
        if difference >= score_difference:
            score_difference, worst = difference, name
        pairs = zip(scores, other_scores, strict=True)
        changed += sum(calibration.decide(float(a)) != calibration.decide(float(b)) for a, b in pairs)
    return Agreement(count, map_difference, score_difference, changed, worst)


def _batches(paths: Sequence[Path]) -> Any:
    """(name, (B, H, W, 3) uint8) to compare on; see `verify`."""
    first: npt.NDArray[np.uint8] = read_image(paths[0])
    odd = first[: max(8, first.shape[0] * 2 // 3) | 1, : max(8, first.shape[1] // 2) | 1]
    yield f"an odd-sized part of {paths[0]}", odd[None]
    yield f"{paths[0]} enlarged", first.repeat(3, axis=0).repeat(2, axis=1)[None]
    yield f"{paths[0]} and its mirror image", np.stack([first, first[:, ::-1]])
    for path, image in read_ahead(paths):
        if isinstance(image, ImageError):
            raise image
        yield str(path), image[None]
