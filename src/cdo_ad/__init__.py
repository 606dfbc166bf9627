"""cdo-ad: find defects in images of products, learned from good images only.

The names below are loaded at their first use, so that `import cdo_ad` is quick and needs no optional package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdo_ad import recipes
    from cdo_ad.bundle import Bundle, read_bundle
    from cdo_ad.calibration import Calibration
    from cdo_ad.config import Config
    from cdo_ad.data import read_dataset, read_image
    from cdo_ad.errors import CdoError
    from cdo_ad.evaluation.evaluate import Evaluation, evaluate
    from cdo_ad.inference.detector import Detector, load
    from cdo_ad.inference.predict import predict_files
    from cdo_ad.training.adapt import adapt
    from cdo_ad.training.job import train
    from cdo_ad.types import Prediction, Region, Sample

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "cdo_ad.bundle",
    "Calibration": "cdo_ad.calibration",
    "CdoError": "cdo_ad.errors",
    "Config": "cdo_ad.config",
    "Detector": "cdo_ad.inference.detector",
    "Evaluation": "cdo_ad.evaluation.evaluate",
    "Prediction": "cdo_ad.types",
    "Region": "cdo_ad.types",
    "Sample": "cdo_ad.types",
    "adapt": "cdo_ad.training.adapt",
    "evaluate": "cdo_ad.evaluation.evaluate",
    "load": "cdo_ad.inference.detector",
    "predict_files": "cdo_ad.inference.predict",
    "read_bundle": "cdo_ad.bundle",
    "read_dataset": "cdo_ad.data",
    "read_image": "cdo_ad.data",
    "recipes": "cdo_ad.recipes",
    "train": "cdo_ad.training.job",
}

__all__ = [
    "Bundle",
    "Calibration",
    "CdoError",
    "Config",
    "Detector",
    "Evaluation",
    "Prediction",
    "Region",
    "Sample",
    "adapt",
    "evaluate",
    "load",
    "predict_files",
    "read_bundle",
    "read_dataset",
    "read_image",
    "recipes",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cdo_ad' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    value = module if _HOMES[name] == f"cdo_ad.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
