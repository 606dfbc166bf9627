"""What flows between the rooms: samples in, predictions and evaluations out, each validated once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import DataError

__all__ = ["GOOD", "Float32Array", "MaskArray", "Prediction", "Region", "Sample", "Split"]

GOOD = "good"
"""The `defect_type` of an image without a defect."""

Split = Literal["train", "calibration", "test"]
Float32Array = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set. The label is the data set's own word, never derived from the mask."""

    path: Path
    """The image's file."""
    split: Split
    """`train` (good images; a share of them is later held out), `calibration` (good images that the data set
    itself sets aside, such as MVTec 3D-AD's validation split) or `test`."""
    defect_type: str = GOOD
    """`"good"`, or the name of the defect's folder."""
    mask_path: Path | None = None
    """The defect's pixel mask; None for good images and where the data set has no masks."""
    category: str = ""
    """The product, e.g. `"bottle"`; empty where the data set holds one product only."""
    xyz_path: Path | None = None
    """The point cloud of the same view, see `cdo_ad.data.surface`; None where the data set has none."""

    def __post_init__(self) -> None:
        if self.split != "test" and self.defect_type != GOOD:
            raise DataError(
                f"{self.path}: a {self.split} image must be good, but it is labelled {self.defect_type!r}: "
                "move it to the test folder"
            )

    def without_depth(self) -> Sample:
        """The image alone."""
        return self if self.xyz_path is None else replace(self, xyz_path=None)

    @property
    def anomalous(self) -> bool:
        """True when the data set says that the image shows a defect."""
        return self.defect_type != GOOD


@dataclass(frozen=True, slots=True)
class Region:
    """One connected region (8-connected) of the drawn mask, in pixels of the image as it was given."""

    box: tuple[int, int, int, int]
    """(x, y, width, height); x and y count from the top left corner."""
    area: int
    """Number of pixels."""
    score: float
    """The largest value of the anomaly map inside."""
    contour: list[list[int]] = field(default_factory=list)
    """[[x, y], ...], the outer boundary, clockwise or not, unclosed."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for `json.dumps`."""
        return {"box": list(self.box), "area": self.area, "score": self.score, "contour": self.contour}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the detector says of one image of height H and width W."""

    score: float
    """Image score; larger is more anomalous."""
    p_value: float
    """(1 + number of calibration scores >= score) / (n + 1); small is anomalous. In (0, 1]."""
    anomalous: bool
    """score > the calibrated image threshold."""
    threshold: float
    """The image threshold the decision was taken with."""
    anomaly_map: Float32Array
    """(H, W) float32, >= 0, at the image's own size."""
    mask: MaskArray
    """(H, W) bool: anomaly_map > the calibrated pixel threshold."""
    regions: tuple[Region, ...] = ()
    """The connected regions of `mask`, largest score first."""
    sentence: str = ""
    """The decision and its reason in words."""
    category: str = ""
    """The category that the image was judged as; empty in a run of one category without a name."""
    category_given: bool = True
    """False where nobody named the category and the model recognised it."""
    seconds: float = 0.0
    """Wall time of preprocessing, networks and post-processing; decoding the file is not included."""
    path: str = ""
    """The image's file, empty where the image came as an array."""

    def __post_init__(self) -> None:
        if self.anomaly_map.ndim != 2 or self.anomaly_map.shape != self.mask.shape:
            raise DataError(
                f"anomaly_map and mask must both be (H, W), got {self.anomaly_map.shape} and {self.mask.shape}"
            )
        if not 0.0 < self.p_value <= 1.0:
            raise DataError(f"p_value must lie in (0, 1], got {self.p_value}")

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as a plain dictionary ready for `json.dumps`."""
        return {
            "path": self.path,
            "score": self.score,
            "p_value": self.p_value,
            "anomalous": self.anomalous,
            "threshold": self.threshold,
            "sentence": self.sentence,
            "category": self.category,
            "category_given": self.category_given,
            "regions": [region.to_json() for region in self.regions],
            "seconds": self.seconds,
        }
