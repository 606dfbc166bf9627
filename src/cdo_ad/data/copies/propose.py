"""Which pairs of images are worth a comparison: the likeliest copies of each image, by two descriptors.

The amplitude spectrum is blind to shifts, the spectrum over the angle about the part's centre to turns and mirroring.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cdo_ad.data.copies.canvas import CANVAS, FloatArray, IntArray, cycles, spectrum
from cdo_ad.data.copies.register import Comparison

__all__ = ["neighbours"]

LOW = 18
"""Frequencies, in periods per canvas, that the amplitudes are taken up to."""
PROPOSALS = 3
"""Likely copies that each descriptor names for each image."""
REFERENCES = 3
"""Alike images whose mean is what a pair shares with others."""
BLOCK = 512


def neighbours(comparison: Comparison) -> tuple[list[list[int]], list[list[int]]]:
    """For each image i: proposed copies j > i, and references.

    References are alike but beyond the ranks that copies take: from the 17th on and beyond an eighth of the set, where
    it is large enough.
    """
    n = comparison.count
    descriptors = _descriptors(comparison)
    first = min(max(16, n // 8), n // 2)
    last = max(first + 1, min(max(n // 4, first + REFERENCES), n - 1))
    ranks = np.unique(np.linspace(first, last - 1, REFERENCES).round().astype(np.int64))
    proposed: set[tuple[int, int]] = set()
    references: list[list[int]] = []
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        for descriptor in descriptors:
            for given in ([descriptor.own], descriptor.twins):
                if given:
                    near = np.max([values[rows] @ descriptor.own.T for values in given], axis=0)
                    proposed |= _nearest(near, rows, min(PROPOSALS, n - 1))
        alike = np.maximum(*(d.alike[rows] @ d.alike.T for d in descriptors))
        alike[np.arange(len(rows)), rows] = 2  # itself first
        references += np.argsort(-alike, axis=1)[:, ranks].tolist()
    proposals: list[list[int]] = [[] for _ in range(n)]
    for i, j in sorted(proposed):
        proposals[i].append(j)
    return proposals, references


def _nearest(near: FloatArray, rows: IntArray, count: int) -> set[tuple[int, int]]:
    """Pairs i < j of each row's nearest images."""
    near[np.arange(len(rows)), rows] = -2
    top = np.argpartition(-near, count - 1, axis=1)[:, :count]
    return {(min(i, j), max(i, j)) for i, js in zip(rows.tolist(), top.tolist(), strict=True) for j in js}


def _descriptors(comparison: Comparison) -> list[_Descriptor]:
    """Of the amplitudes, blind to shifts (and asked for turned and mirrored twins), and of the turns."""
    low = np.r_[CANVAS - LOW : CANVAS, 0 : LOW + 1]  # -LOW .. LOW
    half = comparison.filter[low][:, : LOW + 1]
    radii = cycles[low][:, : LOW + 1]
    used = (radii > 0.02) & (radii < 0.145)
    rows: list[list[FloatArray]] = [[], [], [], []]
    for canvas in comparison.canvases:
        right = np.abs(spectrum(canvas)[low][:, : LOW + 1]) ** 2
        full = np.concatenate((right[::-1, :0:-1], right), axis=1)  # |F(-f)| = |F(f)|
        for twins, power in zip(rows, (full, full[::-1], full.T, full.T[::-1]), strict=True):
            twins.append(np.log(power[:, LOW:] * half**2 + 0.02)[used])
    amplitudes = _Descriptor(np.stack(rows[0]), [np.stack(twins) for twins in rows[1:]])
    power = np.abs(comparison.polar[:, :, 1:]) ** 2
    power = np.log(power + 1e-3 * power.mean(axis=(1, 2), keepdims=True) + 1e-12)
    return [amplitudes, _Descriptor(power.reshape(comparison.count, -1), [])]


class _Descriptor:
    """Unit vectors of all images; their inner products tell how alike images are."""

    def __init__(self, rows: FloatArray, twins: Sequence[FloatArray]) -> None:
        """Standardise the rows over the set.

        Args:
            rows: (n, D).
            twins: what the rows would be if each image were turned or mirrored.
        """
        self._mean, self._scale = rows.mean(axis=0), rows.std(axis=0) + 0.05
        values = (rows - self._mean) / self._scale
        self.alike = _unit(values)
        self._axes = np.zeros((rows.shape[1], 0), dtype=np.float32)
        self._damped = np.zeros(0, dtype=np.float32)
        common = min(len(rows) // 16, rows.shape[1] // 8)
        if common:
            # leading directions tell how images are alike; damped to the level of the others, they leave what differs
            variances, axes = _principal(values, common + 1)
            self._axes = axes[:, 1:]
            self._damped = np.sqrt(variances[0] / variances[1:]) - 1
        self.own = self._told_apart(values)
        self.twins = [self._told_apart((twin - self._mean) / self._scale) for twin in twins]

    def _told_apart(self, values: FloatArray) -> FloatArray:
        return _unit((values + (values @ self._axes * self._damped) @ self._axes.T).astype(np.float32))


def _principal(values: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Variances, ascending, and (D, count) axes of the leading directions of (n, D) rows, count <= min(n, D)."""
    n, width = values.shape
    if width <= n:
        variances, axes = np.linalg.eigh(values.T @ values / n)
        return variances[-count:], axes[:, -count:]
    variances, sides = np.linalg.eigh(values @ values.T / n)  # as many, in a smaller matrix
    variances, sides = variances[-count:], sides[:, -count:]
    return variances, values.T @ (sides / np.sqrt(n * variances))


def _unit(values: FloatArray) -> FloatArray:
    unit: FloatArray = (values / (np.linalg.norm(values, axis=1, keepdims=True) + 1e-12)).astype(np.float32)
    return unit
