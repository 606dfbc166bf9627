"""How far apart expert and apprentice are on normal and on anomalous pixels: margin and overlap, CDO's own claim.

For the discrepancies `a` of anomalous and `b` of normal pixels (grid of the first level):

    margin  = mean(a) - mean(b)                     larger is better
    overlap = sum_i min(A_i, B_i)                   smaller is better, 0 to 1

with A and B the two histograms over the same 200 equal bins from the smallest to the largest value, each normalised to
a sum of 1: the area that both share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.types import Float32Array, MaskArray

__all__ = ["Distributions", "margin_and_overlap"]

BINS = 200
MOST_VALUES = 4_000_000  # a level and class; beyond that images are passed over


def margin_and_overlap(anomalous: Float32Array, normal: Float32Array) -> dict[str, Any]:
    """Margin and overlap, and the histograms they come from, see the module's text.

    Args:
        anomalous: (A,) discrepancies, A >= 1.
        normal: (B,) discrepancies, B >= 1.

    Returns:
        `margin`, `overlap`, `mean_normal`, `mean_anomalous`, `edges` (201,), `normal` and `anomalous` (200,) shares.
    """
    low, high = float(min(anomalous.min(), normal.min())), float(max(anomalous.max(), normal.max()))
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    share_a = np.histogram(anomalous, edges)[0] / anomalous.size
    share_n = np.histogram(normal, edges)[0] / normal.size
    mean_a, mean_n = float(anomalous.mean(dtype=np.float64)), float(normal.mean(dtype=np.float64))
    return {
        "margin": mean_a - mean_n,
        "overlap": float(np.minimum(share_a, share_n).sum()),
        "mean_normal": mean_n,
        "mean_anomalous": mean_a,
        "edges": edges.tolist(),
        "normal": share_n.tolist(),
        "anomalous": share_a.tolist(),
    }


class Distributions:
    """Discrepancies of normal and anomalous pixels, gathered image by image."""

    def __init__(self) -> None:
        """Start empty."""
        self._values: dict[str, tuple[list[Float32Array], list[Float32Array]]] = {}
        self._kept = 0

    def add(self, maps: dict[str, Float32Array], mask: MaskArray) -> None:
        """Add one image.

        Args:
            maps: by branch, (h, w) float32, each on its own grid.
            mask: (H, W) bool of any size, True on the defect. A cell of a grid is anomalous when at least half of
                it is, normal when nothing of it is; cells between count for neither.
        """
        largest = max(values.size for values in maps.values())
        if self._kept + largest > MOST_VALUES:
            return
        self._kept += largest
        for name, values in maps.items():
            share = _share(mask, (values.shape[0], values.shape[1]))
            normal, anomalous = self._values.setdefault(name, ([], []))
            normal.append(values[share == 0])
            anomalous.append(values[share >= 0.5])

    def summary(self) -> dict[str, dict[str, Any]]:
        """By level, see `margin_and_overlap`; empty without normal or without anomalous pixels."""
        joined = {name: (np.concatenate(n), np.concatenate(a)) for name, (n, a) in self._values.items()}
        return {name: margin_and_overlap(a, n) for name, (n, a) in joined.items() if a.size and n.size}


def _share(mask: MaskArray, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    if not mask.any():
        return np.zeros(size, np.float32)
    image = Image.fromarray(mask.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX), dtype=np.float32)
