"""Where a run and its metrics come from: data, versions, the revision of the source, the machine's processors."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from cdo_ad.conformal import Unit
from cdo_ad.files import Document

__all__ = ["DataRecord", "ImageRecord", "Provenance", "processors", "revision", "versions"]

PACKAGES = ("cdo-ad", "torch", "torchvision", "timm", "numpy", "lightning-fabric")


class ImageRecord(Document):
    """One good image that a run was made from."""

    name: str
    """Its path relative to the data set's folder, or a full path."""
    digest: str
    """Of the file's bytes: a copy elsewhere is recognised by it."""
    category: str = ""
    group: int
    """Images of one number are near copies of each other."""


class DataRecord(Document):
    """The data that a run was made from."""

    root: str
    """The data set's folder at that time; empty in an exported model."""
    category: str
    """The category, or the categories joined by commas; empty where the data set names none."""
    fingerprint: str
    """Changes with any image, mask, name, label or split."""
    images: tuple[ImageRecord, ...]
    """Good images that the run learned from."""
    held_out: tuple[ImageRecord, ...] = ()
    """Good images that only calibrate."""
    split: str
    """How groups and folds were made, one line for people."""
    units: dict[str, Unit]
    """By category: what counts once in its calibration, see `cdo_ad.calibration.Unit`."""
    defects: tuple[tuple[str, str], ...] = ()
    """Full paths of labelled defects that the run learned from: image and mask."""
    adapted_from: str | None = None
    """Fingerprint of the data of the run that was adapted."""

    def path(self, record: ImageRecord) -> Path:
        """The image's file, as it was named when the run was made."""
        return Path(self.root) / record.name


class Provenance(Document):
    """Where a run comes from."""

    data: DataRecord
    seed: int
    device: str
    devices: int
    versions: dict[str, str]
    revision: str | None
    exported_with: dict[str, str] | None = None
    """Versions that an export was made with."""
    int8: dict[str, Any] | None = None
    """What the gate of the int8 model measured."""


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that numbers depend on; absent ones are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processors() -> int:
    """The number of processors that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def revision() -> str | None:
    """The git revision of the source, with `+changes` where files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        inside = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        return commit + ("+changes" if inside and _git(folder, "status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
