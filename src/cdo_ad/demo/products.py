"""The built-in data set: drawn images of three products, good and with six kinds of defect, in MVTec AD's layout.

- Each image has generators of its own, seeded by (seed, product, split, type, number), so the number of images
  changes none of them. Same arguments, same pixels; the files' bytes also depend on Pillow's PNG compressor.
- The folder is written under another name and renamed when complete; a marker file remembers the arguments.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.demo.drawing import Array, View, look, photograph
from cdo_ad.demo.flaws import FLAWS, FlawMaker
from cdo_ad.demo.parts import GOOD_FLAW, Flaw, fabric, plate
from cdo_ad.demo.screw import SCREW_DEGREES, SCREW_FLAWS, SCREW_SHIFT, screw
from cdo_ad.errors import ConfigError, DataError
from cdo_ad.types import GOOD

__all__ = ["DEFECTS", "MARKER", "PRODUCTS", "make_dataset", "render"]


@dataclass(frozen=True, slots=True)
class _Product:
    """How a product is drawn, and how it lies before the camera."""

    draw: Callable[[View, np.random.Generator, Flaw], Array]
    shift: float
    """Reference pixels, each way."""
    degrees: float
    """Each way."""
    flaws: dict[str, FlawMaker]


_DRAWN = {
    "fabric": _Product(fabric, 9.0, 3.0, FLAWS["fabric"]),
    "plate": _Product(plate, 5.0, 2.5, FLAWS["plate"]),
    "screw": _Product(screw, SCREW_SHIFT, SCREW_DEGREES, SCREW_FLAWS),
}

PRODUCTS: tuple[str, ...] = tuple(_DRAWN)
"""A woven surface that fills the image; a brushed, drilled and marked metal plate on a mat; a screw that lies anywhere
on a plain ground, turned by any angle."""

DEFECTS: dict[str, tuple[str, ...]] = {name: tuple(product.flaws) for name, product in _DRAWN.items()}
"""The kinds of defect of each product."""

MARKER = "cdo_ad_products.json"
"""The file in the product's folder that remembers the arguments it was made with."""

_DRAWING = 1
"""Raised when the images change, so that an older data set is not taken for a new one."""

_SPLITS = ("train", "test")
_DIFFERS = 0.03
"""Reflectance difference from which a pixel counts as changed, where the mask is measured from the twin."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One image to draw."""

    split: str
    kind: str
    number: int

    @property
    def image(self) -> Path:
        return Path(self.split, self.kind, f"{self.number:03d}.png")

    @property
    def mask(self) -> Path:
        return Path("ground_truth", self.kind, f"{self.number:03d}_mask.png")


def render(
    product: str, key: tuple[int, ...], *, defect: str | None = None, size: int = 256
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draw one image of a product.

    Args:
        product: one of `PRODUCTS`.
        key: non-negative integers that seed pose, texture, light, noise and defect. The same key without and with a
            defect gives twins that differ only where the defect is (and within the blur around it).
        defect: one of `DEFECTS[product]`, or None for a good part.
        size: width and height in pixels.

    Returns:
        The image, (size, size, 3) uint8 RGB, and the defect's mask, (size, size) bool, all False for a good part.
        A soft defect's mask is where its opacity is at least half of its peak.

    Raises:
        ConfigError: an unknown product or defect, or a size below 32.
    """
    _check(product, defect, size)
    drawn = _DRAWN[product]
    view = look(np.random.default_rng([*key, 0]), size, shift=drawn.shift, degrees=drawn.degrees)
    flaw = GOOD_FLAW if defect is None else drawn.flaws[defect](view, np.random.default_rng([*key, 1]))
    scene = _scene(product, view, key, flaw)
    mask = flaw.mask
    if defect is None:
        mask = np.zeros((size, size), dtype=np.bool_)
    elif mask is None:
        mask = np.abs(scene - _scene(product, view, key, GOOD_FLAW)).mean(axis=2) > _DIFFERS
    return photograph(np.random.default_rng([*key, 3]), scene, view), mask


def _scene(product: str, view: View, key: tuple[int, ...], flaw: Flaw) -> Array:
    return _DRAWN[product].draw(view, np.random.default_rng([*key, 2]), flaw)


def _check(product: str, defect: str | None, size: int) -> None:
    if product not in PRODUCTS:
        raise ConfigError(f"no built-in product {product!r}: choose one of {', '.join(PRODUCTS)}")
    if defect is not None and defect not in DEFECTS[product]:
        raise ConfigError(f"{product} has no defect {defect!r}: choose one of {', '.join(DEFECTS[product])}")
    if size < 32:
        raise ConfigError(f"size must be at least 32 pixels, got {size}")


def make_dataset(
    root: Path,
    product: str,
    *,
    train: int = 100,
    test_good: int = 40,
    per_type: int = 8,
    size: int = 256,
    seed: int = 0,
) -> Path:
    """Write a product's data set in MVTec AD's layout, or find the one that is there already.

    Args:
        root: folder that receives the folder `product`; made if missing.
        product: one of `PRODUCTS`.
        train: number of good training images.
        test_good: number of good test images.
        per_type: number of images of each kind of defect.
        size: width and height in pixels.
        seed: another seed gives other images of the same product.

    Returns:
        `root / product`, with train/good, test/good, test/KIND and ground_truth/KIND/NNN_mask.png (0 and 255).

    Raises:
        ConfigError: an argument outside its range.
        DataError: the folder exists and is not this data set, whole; or it cannot be written.
    """
    _check(product, None, size)
    for name, number in {"train": train, "test_good": test_good, "per_type": per_type, "seed": seed}.items():
        if number < 0:
            raise ConfigError(f"{name} must not be negative, got {number}")
    arguments = {"product": product, "train": train, "test_good": test_good, "per_type": per_type}
    arguments |= {"size": size, "seed": seed, "drawing": _DRAWING}
    jobs = [_Job("train", GOOD, n) for n in range(train)] + [_Job("test", GOOD, n) for n in range(test_good)]
    jobs += [_Job("test", kind, n) for kind in DEFECTS[product] for n in range(per_type)]
    folder = Path(root) / product
    try:
        if not folder.exists():
            _write(folder, arguments, jobs)
    except OSError as error:
        raise DataError(
            f"{folder}: the built-in data set cannot be written ({error}): choose another folder"
        ) from error
    _check_existing(folder, arguments, jobs)
    return folder


def _write(folder: Path, arguments: dict[str, Any], jobs: list[_Job]) -> None:
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        for parent in {path.parent for job in jobs for path in (job.image, job.mask) if path.parent.name != GOOD}:
            (unfinished / parent).mkdir(parents=True, exist_ok=True)
        for split in _SPLITS:
            (unfinished / split / GOOD).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads: numpy and zlib let go of the interpreter's lock
            for _ in pool.map(lambda job: _draw(unfinished, arguments, job), jobs):
                pass
        (unfinished / MARKER).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster: what it wrote is checked next
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _draw(folder: Path, arguments: dict[str, Any], job: _Job) -> None:
    product, size = arguments["product"], arguments["size"]
    kinds = (GOOD, *DEFECTS[product])
    key = (arguments["seed"], PRODUCTS.index(product), _SPLITS.index(job.split), kinds.index(job.kind), job.number)
    image, mask = render(product, key, defect=None if job.kind == GOOD else job.kind, size=size)
    Image.fromarray(image).save(folder / job.image, compress_level=4)
    if job.kind != GOOD:
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / job.mask)


def _check_existing(folder: Path, arguments: dict[str, Any], jobs: list[_Job]) -> None:
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{folder} is not a built-in data set: move it away or choose another folder") from None
    if found != arguments:
        raise DataError(f"{folder} was made with other arguments ({found}): delete it or choose another folder")
    paths = [job.image for job in jobs] + [job.mask for job in jobs if job.kind != GOOD]
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} of its files, e.g. {missing[0]}: delete the folder, run again")
