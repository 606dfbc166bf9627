"""A few labelled defects to learn from: images with masks, at the training size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cdo_ad.data.decode import image_size
from cdo_ad.data.masks import read_mask
from cdo_ad.data.readers.layout import read_dataset
from cdo_ad.data.readers.pairing import child, images_of, pair_masks
from cdo_ad.data.store import load_image
from cdo_ad.errors import DataError
from cdo_ad.types import Sample

__all__ = ["Defects", "load_defects", "read_defects"]

MASK_FOLDERS = ("masks", "ground_truth")


@dataclass(frozen=True)
class Defects:
    """Images of defects and where the defects are."""

    paths: tuple[Path, ...]
    images: Tensor
    """(K, 3, h, w) float32 in 0..255; with depth (K, 5, h, w), the surfaces behind the colours."""
    masks: Tensor
    """(K, h, w) bool; a pixel counts if any part of a defect falls on it, so that none is lost by shrinking."""

    def __len__(self) -> int:
        return len(self.paths)


def read_defects(folder: Path | str, layout: str = "auto", category: str | None = None) -> list[Sample]:
    """Find labelled defects.

    Args:
        folder: images with their masks in `masks/` or `ground_truth/` or, named `007_mask.png`, beside them; or a
            whole data set, whose defective test images are taken.
        layout: of a data set, see `read_dataset`.
        category: of a data set, see `read_dataset`.

    Raises:
        DataError: no defect there, or a loose one without a mask.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder: give one with images of defects and their masks")
    loose = [path for path in images_of(folder) if not path.stem.endswith("_mask")]
    if loose:
        masks = next((found for name in MASK_FOLDERS if (found := child(folder, name)) is not None), None)
        pairs = pair_masks(loose, masks) if masks is not None else _beside(loose)
        return [Sample(path, "test", "defect", pairs[path]) for path in loose]
    samples = [s for s in read_dataset(folder, layout, category) if s.anomalous]
    if not samples:
        raise DataError(f"{folder}: holds no images of defects, neither loose ones nor in test/<type>/")
    return samples


def _beside(images: Sequence[Path]) -> dict[Path, Path]:
    pairs = {}
    for path in images:
        found = sorted(path.parent.glob(f"{path.stem}_mask.*"))
        if not found:
            raise DataError(
                f"{path}: has no mask: put {path.stem}_mask.png beside it or masks into {path.parent}/masks"
            )
        pairs[path] = found[0]
    return pairs


def load_defects(samples: Sequence[Sample], size: tuple[int, int], depth: bool = False) -> Defects:
    """Decode images and masks, with depth point clouds too, to (h, w).

    Raises:
        ImageError: a file that cannot be read, or a mask of another size than its image.
        DataError: a mask that is missing or empty.
    """
    images, masks = [], []
    for sample in samples:
        if sample.mask_path is None:
            raise DataError(f"{sample.path}: has no mask, and a defect is learned from its pixels: draw one")
        images.append(load_image(sample.path, size, depth))
        mask = torch.from_numpy(read_mask(sample.mask_path, image_size(sample.path)))
        if not mask.any():
            raise DataError(f"{sample.mask_path}: the mask is empty: draw the defect, or leave the image out")
        masks.append(F.adaptive_max_pool2d(mask[None, None].float(), size)[0, 0] > 0)
    return Defects(tuple(s.path for s in samples), torch.stack(images), torch.stack(masks))
