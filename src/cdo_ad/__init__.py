"""cdo-ad: find defects in images of products, learned from good images only.

The names below are loaded at their first use, so that `import cdo_ad` is quick and needs no optional package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cdo_ad.version import __version__

if TYPE_CHECKING:
    from cdo_ad import errors, recipes
    from cdo_ad.audit.check import check
    from cdo_ad.bundle import Bundle, read_bundle
    from cdo_ad.calibration import Calibration
    from cdo_ad.config import Config
    from cdo_ad.data import read_dataset, read_image
    from cdo_ad.demo.run import run_demo
    from cdo_ad.deploy.benchmark import benchmark
    from cdo_ad.deploy.export import export
    from cdo_ad.deploy.int8 import export_int8
    from cdo_ad.errors import CdoError
    from cdo_ad.evaluation.evaluate import Evaluation, evaluate
    from cdo_ad.inference.calibrate import calibrate
    from cdo_ad.inference.detector import Detector, load
    from cdo_ad.inference.drift import drift
    from cdo_ad.inference.predict import predict_files
    from cdo_ad.reporting.build import report
    from cdo_ad.reporting.compare import compare
    from cdo_ad.reporting.tables import table
    from cdo_ad.scale.sweeps import sweep
    from cdo_ad.training.adapt import adapt, refit
    from cdo_ad.training.train import train
    from cdo_ad.types import Prediction, Region, Sample

_HOMES = {
    "Bundle": "bundle",
    "Calibration": "calibration",
    "CdoError": "errors",
    "Config": "config",
    "Detector": "inference.detector",
    "Evaluation": "evaluation.evaluate",
    "Prediction": "types",
    "Region": "types",
    "Sample": "types",
    "adapt": "training.adapt",
    "benchmark": "deploy.benchmark",
    "calibrate": "inference.calibrate",
    "check": "audit.check",
    "compare": "reporting.compare",
    "drift": "inference.drift",
    "errors": "errors",
    "evaluate": "evaluation.evaluate",
    "export": "deploy.export",
    "export_int8": "deploy.int8",
    "load": "inference.detector",
    "predict_files": "inference.predict",
    "read_bundle": "bundle",
    "read_dataset": "data",
    "read_image": "data",
    "recipes": "recipes",
    "refit": "training.adapt",
    "report": "reporting.build",
    "run_demo": "demo.run",
    "sweep": "scale.sweeps",
    "table": "reporting.tables",
    "train": "training.train",
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
    "__version__",
    "adapt",
    "benchmark",
    "calibrate",
    "check",
    "compare",
    "drift",
    "errors",
    "evaluate",
    "export",
    "export_int8",
    "load",
    "predict_files",
    "read_bundle",
    "read_dataset",
    "read_image",
    "recipes",
    "refit",
    "report",
    "run_demo",
    "sweep",
    "table",
    "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cdo_ad' has no attribute {name!r}")
    module = import_module(f"cdo_ad.{_HOMES[name]}")
    value = module if _HOMES[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
