"""A run folder: everything a detector needs, in plain files that are checked when they are read.

config.json         what it is (kind, format), settings, model, provenance, hash of the weights
model.safetensors   the weights of all networks
calibration.json    scores of good images and the thresholds that follow from them
train_log.csv       a row for each epoch
tensorboard/        the same for TensorBoard
metrics.json, images.csv, pixels.npz   of the last evaluation, see `cdo_ad.evaluation.results`
export/, report.html                   made from the run

- A folder is a run because `config.json` says so by its `kind`, never because a file has that name.
- New files are first written into `.staging-*`. Renaming that folder to `.commit` makes them the run's; then they move
  to their places. A process may be killed at any moment: a reader looks into `.commit` first, the next writer finishes.
- Only the files above are ever replaced. Whatever else lies in the folder stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.errors import BundleError, ConfigError
from cdo_ad.files import Document, exclusive, problem, write_json, writing
from cdo_ad.provenance import DataRecord, Provenance
from cdo_ad.spec import ModelSpec

__all__ = [
    "FORMAT",
    "Bundle",
    "Manifest",
    "check_writable",
    "is_run",
    "locked",
    "read_bundle",
    "write_calibration",
    "write_run",
]

FORMAT = 1
"""Version of the layout; a reader refuses a larger one."""
MODEL, CONFIG, CALIBRATION, LOG = "model.safetensors", "config.json", "calibration.json", "train_log.csv"
KIND = "cdo-ad run"
COMMIT, STAGING = ".commit", ".staging-"
LARGEST_JSON = 256 * 2**20
"""Bytes of a JSON document; a larger one is not read."""


class Manifest(Document):
    """What `config.json` holds."""

    kind: Literal["cdo-ad run"] = "cdo-ad run"
    format: Literal[1] = 1
    settings: Config
    model: ModelSpec
    weights_sha256: str
    """Of `model.safetensors`; exports and evaluations name the weights they belong to by it."""
    provenance: Provenance


@dataclass(frozen=True)
class Bundle:
    """A run folder that was read and found complete; the weights stay on disk."""

    path: Path
    config: Config
    model: ModelSpec
    calibration: Calibration
    provenance: Provenance
    weights_sha256: str

    @property
    def data(self) -> DataRecord:
        """The data that it was made from."""
        return self.provenance.data

    @property
    def data_root(self) -> Path:
        """Where the training data was."""
        return Path(self.data.root)

    @property
    def good_paths(self) -> list[Path]:
        """Files of the good images that it learned from, as they were named then."""
        return [self.data.path(record) for record in self.data.images]

    @property
    def comparison_paths(self) -> list[Path]:
        """Good images to compare engines on: the held-out ones, else those that it learned from."""
        return [self.data.path(record) for record in self.data.held_out or self.data.images]

    def require_images_alone(self, what: str) -> None:
        """Raise ConfigError where the model needs point clouds, which `what` has not."""
        if self.model.depth:
            raise ConfigError(
                f"{self.path} looks at the point cloud of each image, and {what} has images alone: use  predict  or  "
                "evaluate  with the run itself, or train without depth (--recipe lite0)"
            )

    def weights(self) -> bytes:
        """The content of `model.safetensors`.

        Raises:
            BundleError: it is unreadable or not the file that was written with this `config.json`.
        """
        file = _place(self.path, MODEL)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror}; check its rights") from error
        if hashlib.sha256(data).hexdigest() != self.weights_sha256:
            raise BundleError(f"{file} is damaged or belongs to another run: copy the run again, or train it again")
        return data


def is_run(path: Path | str) -> bool:
    """True where the folder's `config.json` says that it is a run."""
    file = _place(Path(path), CONFIG)
    try:
        return file.stat().st_size <= LARGEST_JSON and json.loads(file.read_bytes()).get("kind") == KIND
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_bundle(path: Path | str) -> Bundle:
    """Read a run folder.

    Raises:
        BundleError: it is missing, incomplete, damaged or of a newer version.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path} is not a run folder: make one with  cdo-ad train DATA --out {path}")
    missing = [name for name in (CONFIG, CALIBRATION, MODEL) if not _place(path, name).is_file()]
    if missing:
        raise BundleError(f"{path} is not a complete run folder: {missing[0]} is missing; train it again")
    document = read_json(_place(path, CONFIG))
    if document.get("kind") != KIND:
        raise BundleError(f"{path} is not a run folder: its {CONFIG} is of something else")
    if isinstance(document.get("format"), int) and document["format"] > FORMAT:
        raise BundleError(f"{path} was written by a newer version (format {document['format']}): update cdo-ad")
    try:
        manifest = Manifest.from_json(document)
    except (ValidationError, ConfigError) as error:
        what = problem(error) if isinstance(error, ValidationError) else error
        raise BundleError(f"{path / CONFIG} is damaged: {what}") from error
    calibration = Calibration.read(read_json(_place(path, CALIBRATION)), str(path / CALIBRATION))
    if list(calibration.categories) != list(manifest.model.names):
        raise BundleError(
            f"{path / CALIBRATION} is of other categories than the run: copy the run again, or train it again"
        )
    if calibration.weights_sha256 != manifest.weights_sha256:
        raise BundleError(f"{path / CALIBRATION} belongs to other weights: copy the run again, or train it again")
    return Bundle(
        path, manifest.settings, manifest.model, calibration, manifest.provenance, manifest.weights_sha256
    )  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON document of bounded size; raises BundleError, which names the file."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise BundleError(f"{path} is damaged: it is larger than {LARGEST_JSON // 2**20} MiB")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; check its rights") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: it is no JSON document ({error})") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} is damaged: it should hold one JSON object")
    return document


def check_writable(path: Path) -> None:
    """Raise BundleError unless `path` is free, an empty folder or a run: nothing else is ever written into."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir() and (is_run(path) or all(_is_ours(item) for item in path.iterdir())):
        return
    raise BundleError(
        f"{path} exists and is not a run folder: choose another --out, or a folder that does not exist yet"
    )


@contextmanager
def write_run(path: Path) -> Iterator[Path]:
    """Yield an empty folder whose files become those of the run when the block ends without an error.

    The caller holds the lock (`cdo_ad.files.exclusive`). An older run stays whole until then, and for good if the block
    fails; files that are not the run's own stay in any case.

    Raises:
        BundleError: `path` holds something else than a run.
        OutputError: the folder cannot be written to.
    """
    check_writable(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        _finish(path)
        for leftover in path.glob(f"{STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staging = path / f"{STAGING}{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            yield staging
            for file in staging.rglob("*"):
                if file.is_file():
                    file.chmod(0o666 & ~_umask())  # some writers give the owner alone the right to read
                    _sync(file)
            staging.rename(path / COMMIT)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _sync(path)
        _finish(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the folder if needed and hold its lock; a folder that was made here and stays without a run goes again.

    Raises:
        BusyError: another process writes there.
        BundleError: `path` holds something else than a run.
        OutputError: the folder cannot be written to.
    """
    check_writable(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(path):
            yield
    finally:
        if path.is_dir() and not is_run(path) and all(_is_ours(item) for item in path.iterdir()):
            shutil.rmtree(path, ignore_errors=True)


def write_calibration(run: Path, calibration: Calibration) -> None:
    """Replace a run's calibration; raises BusyError where the run is being written, and OutputError."""
    with locked(run), writing(run):
        _finish(run)
        write_json(run / CALIBRATION, calibration.to_json())


def _finish(path: Path) -> None:
    """Move the files of a commit to their places; may be interrupted and called again."""
    commit = path / COMMIT
    if not commit.is_dir():
        return
    for source in sorted(commit.iterdir()):
        target = path / source.name
        if source.is_dir() and target.is_dir():  # a folder of logs: ours as a whole
            shutil.rmtree(target)
        source.replace(target)
    commit.rmdir()


def _place(path: Path, name: str) -> Path:
    """Where a file of the run lies now: of an interrupted commit in the folder that the next writer will empty."""
    waiting = path / COMMIT / name
    return waiting if waiting.exists() else path / name


def _is_ours(item: Path) -> bool:
    return item.name == ".lock" or item.name.startswith(STAGING)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of files, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
