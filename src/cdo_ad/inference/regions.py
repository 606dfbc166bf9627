"""Connected regions of a mask: boxes, areas, contours."""

from __future__ import annotations

import cc3d
import numpy as np
from contourpy import contour_generator

from cdo_ad.types import Float32Array, MaskArray, Region

__all__ = ["find_regions"]


def find_regions(mask: MaskArray, anomaly_map: Float32Array, most: int = 100) -> tuple[Region, ...]:
    """The 8-connected regions of a mask, largest score first.

    Args:
        mask: (H, W) bool.
        anomaly_map: (H, W) float32, for each region's score.
        most: how many are returned at the most.
    """
    if not mask.any():
        return ()
    # bytes, not bool: for bool cc3d 4.1 gives numbers to some pixels outside the mask, at odd edges
    labels = cc3d.connected_components(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    statistics = cc3d.statistics(labels)
    found = []
    # cc3d leaves numbers out now and then: those have no pixel
    for label in (int(n) for n in np.flatnonzero(statistics["voxel_counts"]) if n > 0):
        rows, columns = statistics["bounding_boxes"][label][:2]
        inside = labels[rows, columns] == label
        found.append((float(anomaly_map[rows, columns][inside].max()), label, rows, columns))
    found.sort(key=lambda item: (-item[0], item[1]))
    return tuple(
        Region(
            box=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
            area=int(statistics["voxel_counts"][label]),
            score=score,
            contour=_contour(labels[rows, columns] == label, columns.start, rows.start),
        )
        for score, label, rows, columns in found[:most]
    )


def _contour(inside: MaskArray, x: int, y: int) -> list[list[int]]:
    """The outer boundary of one region in the image's pixels."""
    padded = np.pad(inside, 1).astype(np.float64)
    # just under 1 the level line runs through the centres of the region's own edge pixels
    lines = contour_generator(z=padded).lines(1 - 1e-6)
    outer = max((np.asarray(line) for line in lines), key=lambda line: np.ptp(line[:, 0]) * np.ptp(line[:, 1]))
    points = np.rint(outer).astype(int) + np.array([x - 1, y - 1])
    keep = np.ones(len(points), dtype=bool)
    keep[1:] = (np.diff(points, axis=0) != 0).any(axis=1)
    points = points[keep]
    if len(points) > 1 and (points[0] == points[-1]).all():
        points = points[:-1]
    return [[int(px), int(py)] for px, py in points]
