"""Regions where the labelling leaves numbers out, as cc3d does for some masks."""

from __future__ import annotations

import numpy as np
import pytest

from cdo_ad.inference import regions


def test_numbers_without_a_pixel_are_no_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((12, 16), np.uint32)
    labels[1:4, 2:6], labels[8:10, 9:14] = 1, 7
    monkeypatch.setattr(regions.cc3d, "connected_components", lambda *_, **__: labels)
    found = regions.find_regions(labels > 0, labels.astype(np.float32))
    assert [(region.box, region.area) for region in found] == [((9, 8, 5, 2), 10), ((2, 1, 4, 3), 12)]
