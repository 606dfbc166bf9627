"""What an exported model is: files that a manifest of checksums lists, and a JSON text inside the model file.

- `model.xml` with `model.bin` (OpenVINO), `model.onnx` (ONNX Runtime), `model_int8.xml` (quantised OpenVINO).
- `model.xml.sha256` and so on beside them list their checksums, in the format of the program `sha256sum`.
- Settings, calibration and provenance lie inside the model file, so an export needs neither its run nor torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cdo_ad.bundle import Bundle
from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.errors import BundleError, CdoError
from cdo_ad.files import Document, problem, write_text
from cdo_ad.provenance import Provenance
from cdo_ad.spec import ModelSpec

__all__ = ["FILES", "INT8_FILE", "METADATA_KEY", "Metadata", "check_manifest", "is_export", "write_manifest"]

FILES = {"openvino": "model.xml", "onnx": "model.onnx"}
"""Name of the exported file by engine, in the run's folder `export`."""
INT8_FILE = "model_int8.xml"
"""Name of the quantised one; it carries a calibration of its own."""
METADATA_KEY = "cdo_ad"


class Metadata(Document):
    """What an exported file says of itself."""

    kind: Literal["cdo-ad export"] = "cdo-ad export"
    format: Literal[1] = 1
    precision: Literal["fp32", "int8"]
    labels: tuple[str, str] = ("good", "anomalous")
    """Names of the two decisions."""
    settings: Config
    model: ModelSpec
    weights_sha256: str
    """Of the run's weights that it was made from."""
    calibration: Calibration
    provenance: Provenance
    """As in the run, without the names of the images."""

    @classmethod
    def read(cls, text: str, path: Path) -> Metadata:
        """From the JSON text in a file; raises BundleError, which names the file, unless an export wrote it."""
        try:
            return cls.model_validate_json(text)
        except (ValidationError, CdoError) as error:
            what = problem(error) if isinstance(error, ValidationError) else error
            raise BundleError(f"{path} does not say what it was made from ({what}): export it again") from error

    def bundle(self, path: Path) -> Bundle:
        """What a run folder says, from the exported file at `path`; it has no torch weights and names no images."""
        return Bundle(path.parent, self.settings, self.model, self.calibration, self.provenance, self.weights_sha256)


def is_export(path: Path) -> bool:
    """True for the name of an exported model file."""
    return path.suffix in (".xml", ".onnx") and not path.is_dir()


def write_manifest(path: Path) -> None:
    """Write the checksums of a model file, and of its .bin, beside it."""
    lines = [f"{_digest(file)}  {file.name}\n" for file in _parts(path)]
    write_text(_manifest(path), "".join(lines))


def check_manifest(path: Path) -> None:
    """Raise BundleError unless a model file and its weights are what was exported."""
    if path.suffix not in (".xml", ".onnx"):
        raise BundleError(f"{path} is no exported model: name a .xml or .onnx file written by  cdo-ad export")
    manifest = _manifest(path)
    for file in (*_parts(path), manifest):
        if not file.is_file():
            raise BundleError(f"{file} is missing: copy the exported model again, with all its files")
    try:
        lines = [line.split(maxsplit=1) for line in manifest.read_text("utf-8").splitlines()]
        listed = {name: digest for digest, name in lines}
    except (OSError, ValueError) as error:
        raise BundleError(f"{manifest} is damaged: copy the exported model again, with all its files") from error
    for file in _parts(path):
        if listed.get(file.name) != _digest(file):
            raise BundleError(f"{file} is damaged or was not written by  cdo-ad export: copy or export it again")


def _manifest(path: Path) -> Path:
    """By the whole name: `model.xml` and `model.onnx` lie in one folder."""
    return path.with_name(f"{path.name}.sha256")


def _parts(path: Path) -> tuple[Path, ...]:
    return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's text."""
    text: list[Any] = str(error).strip().splitlines()
    return str(text[0]) if text else type(error).__name__
