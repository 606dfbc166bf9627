"""A run folder: everything a detector needs, in plain files, written whole or not at all.

model.safetensors   both networks
config.json         settings, preprocessing, data fingerprint and split, versions, seed, source revision
calibration.json    scores of the held-out good images and the thresholds
metrics.json        of the last evaluation, when there was one
train_log.csv       a row an epoch
tensorboard/        the same for TensorBoard
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.errors import BundleError

__all__ = ["FORMAT", "Bundle", "read_bundle", "write_folder", "write_json"]

FORMAT = 1
"""Version of the folder's layout; a reader refuses a larger one."""
MODEL, CONFIG, CALIBRATION, METRICS, LOG = (
    "model.safetensors",
    "config.json",
    "calibration.json",
    "metrics.json",
    "train_log.csv",
)


@dataclass(frozen=True)
class Bundle:
    """A run folder that was read and found complete; the weights stay on disk."""

    path: Path
    config: Config
    calibration: Calibration
    provenance: dict[str, Any]
    """Data fingerprint, files of the split, versions, device, revision."""

    @property
    def model_file(self) -> Path:
        """The weights of both networks."""
        return self.path / MODEL

    @property
    def data_root(self) -> Path:
        """Where the training data was."""
        return Path(self.provenance["data"]["root"])

    @property
    def calibration_paths(self) -> list[Path]:
        """The held-out good images' files, as they were named when the bundle was made."""
        return [self.data_root / name for name in self.provenance["data"]["calibration"]]


def read_bundle(path: Path | str) -> Bundle:
    """Read a run folder.

    Raises:
        BundleError: if it is missing, incomplete, damaged or of a newer version.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path} is not a run folder: make one with  cdo-ad train DATA --out {path}")
    missing = [name for name in (CONFIG, CALIBRATION, MODEL) if not (path / name).is_file()]
    if missing:
        raise BundleError(f"{path} is not a complete run folder: {missing[0]} is missing; train it again")
    document = _read_json(path / CONFIG)
    if document.get("format", 0) > FORMAT:
        raise BundleError(f"{path} was written by a newer version (format {document['format']}): update cdo-ad")
    try:
        config = Config.from_json(document["settings"])
        provenance = dict(document["provenance"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / CONFIG} is damaged: {error}") from error
    return Bundle(path, config, Calibration.from_json(_read_json(path / CALIBRATION)), provenance)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    An older folder at `path` stays whole until then, and for good if the block fails.

    Raises:
        BundleError: if `path` exists and holds something else than a run.
    """
    path = Path(path)
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        old = path.with_name(f"{temporary.name}.old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Raise BundleError if `path` is neither free nor an empty folder nor an older run."""
    if path.is_dir() and ((path / CONFIG).is_file() or not any(path.iterdir())):
        return
    if path.exists():
        raise BundleError(f"{path} exists and is not a run folder: choose another --out or remove it")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} is damaged: it should hold one JSON object")
    return document
