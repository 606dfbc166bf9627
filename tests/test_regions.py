"""Regions of masks against scipy's labels; cc3d 4.1 labels pixels outside a bool mask of odd size now and then."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cdo_ad.inference.regions import find_regions


def test_regions_are_those_of_scipy_for_masks_of_all_kinds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(tuple(rng.integers(2, 40, 2))) < rng.uniform(0.05, 0.95)
        found = find_regions(mask, rng.random(mask.shape).astype(np.float32), most=10_000)
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        expected = [
            ((columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start), int(area))
            for (rows, columns), area in zip(ndimage.find_objects(labels), np.bincount(labels.ravel())[1:], strict=True)
        ]
        assert len(found) == count
        assert sorted((region.box, region.area) for region in found) == sorted(expected)
