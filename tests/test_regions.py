"""Regions of masks against scipy's labels, for masks in whose labels cc3d leaves numbers out too."""

from __future__ import annotations

import cc3d
import numpy as np
from scipy import ndimage

from cdo_ad.inference.regions import find_regions


def test_regions_are_those_of_scipy_for_masks_of_all_kinds() -> None:
    rng = np.random.default_rng(0)
    with_gaps = 0
    for _ in range(200):
        mask = rng.random(tuple(rng.integers(2, 40, 2))) < rng.uniform(0.05, 0.95)
        numbers = np.unique(cc3d.connected_components(mask, connectivity=8, binary_image=True))
        with_gaps += numbers.max() >= numbers.size
        found = find_regions(mask, rng.random(mask.shape).astype(np.float32), most=10_000)
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        expected = [
            ((columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start), int(area))
            for (rows, columns), area in zip(ndimage.find_objects(labels), np.bincount(labels.ravel())[1:], strict=True)
        ]
        assert len(found) == count
        assert sorted((region.box, region.area) for region in found) == sorted(expected)
    assert with_gaps > 3
