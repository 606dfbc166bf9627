"""One to a few good images: altered copies stand in for the images that are missing.

Copies differ from their image as the next image of the same part would at the least: a little moved, brighter or
darker, with other camera noise. They keep a density from being degenerate. The threshold to start with
is what they score when the density has not seen their image (a single image: other copies of it). They are no
independent images, so no false-alarm rate follows from them (`cdo_ad.calibration.Calibration.guaranteed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cdo_ad.data.decode import UInt8Array, read_image
from cdo_ad.data.store import to_size

__all__ = ["CopyStore", "altered"]

SHIFT = 0.02  # of each side
GAIN = 0.08
OFFSET = 6.0  # of 255
NOISE = 1.5  # of 255


def altered(image: UInt8Array, seed: int) -> UInt8Array:
    """A copy moved by up to 2 % of each side (edges repeated), with another gain (8 %), offset (6) and noise (1.5).

    Args:
        image: (H, W, 3) uint8.
        seed: of the change.

    Returns:
        The same shape and type.
    """
    random = np.random.default_rng(seed)
    height, width = image.shape[:2]
    rows = np.arange(height) + random.integers(-round(SHIFT * height), round(SHIFT * height) + 1)
    columns = np.arange(width) + random.integers(-round(SHIFT * width), round(SHIFT * width) + 1)
    moved = image[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)].astype(np.float32)
    gain, offset = random.uniform(1 - GAIN, 1 + GAIN), random.uniform(-OFFSET, OFFSET)
    noise = random.standard_normal((height, width, 1), dtype=np.float32) * NOISE
    changed: UInt8Array = np.rint(moved * gain + offset + noise).clip(0, 255).astype(np.uint8)
    return changed


class CopyStore(Dataset[Tensor]):
    """Images and altered copies of each, at the training size, as `cdo_ad.data.store.ImageStore` gives them."""

    cached = True

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        wanted: int,
        seed: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Load the images and make copies until there are about `wanted`.

        Raises:
            ImageError: an image that cannot be read.
        """
        copies = max(0, -(-wanted // len(paths)) - 1)
        images = []
        for i, path in enumerate(paths):
            image = read_image(path)
            seeds = [seed * 1_000_003 + i * 1009 + k for k in range(copies)]
            images += [to_size(p, size) for p in (image, *(altered(image, s) for s in seeds))]
            progress(i + 1, len(paths))
        self.images = torch.stack(images)
        self.originals = len(paths)

    def groups(self) -> list[Tensor]:
        """(B, 3, h, w) each image with its copies."""
        return list(self.images.tensor_split(self.originals))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]
