"""How many pixels of each image have which score, in bins: small enough to keep, so that images can be drawn again.

A bin is a float32 without its 15 lowest bits: scores that differ by less than 0.4 % share one. Metrics that are made
from the counts of all images differ from the exact ones (`cdo_ad.evaluation.metrics`) in the third decimal at most;
they serve intervals, never the figures themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
import numpy.typing as npt

from cdo_ad.errors import BundleError
from cdo_ad.evaluation.histogram import sort_keys
from cdo_ad.types import Float32Array, MaskArray

__all__ = ["PixelHistograms", "PixelTable"]

DROPPED_BITS = 15
COLUMNS = ("image", "bin", "good", "anomalous", "weight")
Float32Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PixelTable:
    """Counts of N images in B bins, the smallest score first."""

    good: Float32Matrix
    """(N, B) good pixels."""
    anomalous: Float32Matrix
    """(N, B) anomalous pixels."""
    weight: Float32Matrix
    """(N, B) anomalous pixels, each divided by the area of its region (8-connected)."""


class PixelHistograms:
    """Filled image by image; images are numbered in the order in which an evaluation lists them."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows: list[tuple[npt.NDArray[np.float64], ...]] = []

    def add(self, image: int, anomaly_map: Float32Array, mask: MaskArray) -> None:
        """Count one image.

        Args:
            image: its number, from 0.
            anomaly_map: (H, W) finite float32; other floats are rounded to it.
            mask: (H, W) bool.
        """
        keys = sort_keys(np.ascontiguousarray(anomaly_map, dtype=np.float32))
        bins = (keys >> np.uint32(DROPPED_BITS)).astype(np.int64).ravel()
        first, truth = int(bins.min()), mask.ravel()
        weight = np.zeros(0)
        if truth.any():
            regions = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=8).ravel()[truth]
            weight = 1.0 / np.bincount(regions)[regions]
        bins -= first
        total = np.bincount(bins)
        bad = np.bincount(bins[truth], minlength=total.size)
        weights = np.bincount(bins[truth], weight, minlength=total.size)
        there = np.flatnonzero(total)
        columns = (np.full(there.size, image), there + first, (total - bad)[there], bad[there], weights[there])
        self._rows.append(tuple(column.astype(np.float64) for column in columns))

    def save(self, file: Path) -> None:
        """Write all counts as one compressed NumPy archive."""
        columns = [np.concatenate(column) for column in zip(*self._rows, strict=True)] or [np.zeros(0)] * len(COLUMNS)
        types = (np.uint32, np.uint32, np.uint32, np.uint32, np.float32)
        with file.open("wb") as stream:
            named = {name: c.astype(t) for name, c, t in zip(COLUMNS, columns, types, strict=True)}
            np.savez_compressed(stream, **named)  # type: ignore[arg-type]

    @staticmethod
    def load(file: Path, images: int) -> PixelTable:
        """Read what `save` wrote, for `images` images; those without a mask have no counts.

        Raises:
            BundleError: a file that is damaged or of other images.
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
        for table, name in zip(tables, ("good", "anomalous", "weight"), strict=True):
            table[rows, where] = columns[name]
        return PixelTable(*tables)
