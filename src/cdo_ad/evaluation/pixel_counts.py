"""How many pixels of each image have which score, in coarse bins: small enough to keep beside an evaluation.

Images can be drawn again from them. Metrics made from these counts differ from the exact ones in the third decimal at
most; they serve intervals, never the metrics themselves.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import BundleError
from cdo_ad.evaluation.curves import Bins
from cdo_ad.evaluation.histogram import COARSE, Counted, ScoreHistogram
from cdo_ad.types import Float32Array, MaskArray

__all__ = ["PixelCounter", "PixelCounts"]

COLUMNS = ("image", "bin", "good", "anomalous", "weight")
TYPES = (np.uint32, np.uint32, np.uint32, np.uint32, np.float32)
Float32Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PixelCounts:
    """Counts of N images at B scores, the largest score first; (N, B) each."""

    good: Float32Matrix
    anomalous: Float32Matrix
    weight: Float32Matrix
    """Anomalous pixels, each divided by the area of its region (8-connected)."""

    def chosen(self, images: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> PixelCounts:
        """The counts of some of the images, in the order given."""
        return PixelCounts(self.good[images], self.anomalous[images], self.weight[images])

    def drawn(self, times: npt.NDArray[np.float64]) -> Bins:
        """(..., B) counts of test sets in which image n is `times[..., n]` times."""
        narrow = times.astype(np.float32)
        parts = ((narrow @ part).astype(np.float64) for part in (self.good, self.anomalous, self.weight))
        return Bins(*parts)

    @classmethod
    def load(cls, file: Path, images: int) -> PixelCounts:
        """Read what `PixelCounter.to_bytes` made, for `images` images; those without a mask have no counts.

        Raises:
            BundleError: the file is damaged or of other images.
        """
        try:
            with np.load(file, allow_pickle=False) as archive:
                columns = {name: archive[name] for name in COLUMNS}
        except Exception as error:  # a damaged archive raises errors of zipfile, zlib, NumPy and others
            raise BundleError(f"{file} cannot be read ({error}): evaluate the run again") from error
        rows = columns["image"].astype(np.int64)
        if rows.size and rows.max() >= images:
            raise BundleError(f"{file} counts more images than the {images} of images.csv: evaluate the run again")
        bins, where = np.unique(columns["bin"], return_inverse=True)
        tables = [np.zeros((images, bins.size), np.float32) for _ in range(3)]
        for table, name in zip(tables, COLUMNS[2:], strict=True):
            table[rows, bins.size - 1 - where] = columns[name]
        return cls(*tables)


class PixelCounter:
    """Filled image by image; images are numbered in the order in which an evaluation lists them."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows: list[tuple[int, Counted]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, image: int, anomaly_map: Float32Array, mask: MaskArray, inside: MaskArray | None = None) -> None:
        """Count one image.

        Args:
            image: its number, from 0.
            anomaly_map: (H, W) finite float32.
            mask: (H, W) bool.
            inside: (H, W) bool, the region of interest; None for all pixels.
        """
        histogram = ScoreHistogram(shift=COARSE)
        histogram.add(anomaly_map, mask, inside)
        self._rows.append((image, histogram.counted()))

    def to_bytes(self) -> bytes:
        """All counts as one compressed NumPy archive."""
        images = [np.full(counted.keys.size, image) for image, counted in self._rows]
        columns = zip(images, *zip(*(counted for _, counted in self._rows), strict=True), strict=True)
        stacked = [np.concatenate(column) for column in zip(*columns, strict=True)] or [np.zeros(0)] * len(COLUMNS)
        named = {name: c.astype(t) for name, c, t in zip(COLUMNS, stacked, TYPES, strict=True)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **named)  # type: ignore[arg-type]
        return buffer.getvalue()
