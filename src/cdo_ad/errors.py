"""Every error this package raises on purpose.

    CdoError                      catch this one to catch them all
    |-- DataError                 a data set or an image that cannot be used
    |   `-- ImageError            one image: unreadable, truncated, of a wrong shape
    |-- ConfigError               a setting outside its range, or an unknown name
    |-- CalibrationError          a false-alarm rate that the good images cannot guarantee
    |-- TrainingError             a training that must not go on (a loss that is not a number)
    |-- ModelError                a model that gives scores that are not numbers
    |-- BundleError               a run folder that is missing, incomplete, damaged or of another version
    |   `-- BusyError             a folder that another process is writing to
    |-- ExportError               an exported model that does not agree with its source
    |-- OutputError               a result that cannot be written: disk full, no rights
    `-- MissingExtraError         a verb whose optional dependencies are not installed

A message is one line: what is wrong, where, and what to do. The command line prints it and exits with 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BundleError",
    "BusyError",
    "CalibrationError",
    "CdoError",
    "CdoWarning",
    "ConfigError",
    "DataError",
    "ExportError",
    "ImageError",
    "Interrupted",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "TrainingError",
    "needs_extra",
]


class CdoError(Exception):
    """Base of all errors of this package; whatever a file name holds, the message is one printable line."""

    def __init__(self, message: str) -> None:
        """Keep the message; line ends, control characters and undecodable bytes in it are written as escapes."""
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class DataError(CdoError):
    """A data set or an image that cannot be used as it is."""


class ImageError(DataError):
    """One image that cannot be read, or whose shape or type is not one of an image."""


class ConfigError(CdoError, ValueError):
    """A setting outside its range, or a name that is not known."""


class CalibrationError(CdoError):
    """A false-alarm rate that the number of good images cannot guarantee."""


class TrainingError(CdoError):
    """A training that must not go on, for instance because its loss is not a number."""


class ModelError(CdoError):
    """A model whose output is not a number: its weights are damaged."""


class BundleError(CdoError):
    """A run folder that is missing, incomplete, damaged or written by an incompatible version."""


class BusyError(BundleError):
    """A folder that another process is writing to."""


class ExportError(CdoError):
    """An exported model that does not give the answers of the model it was made from."""


class OutputError(CdoError):
    """A result that cannot be written."""


class Interrupted(BaseException):
    """The user stopped the work; says what was kept."""


class CdoWarning(UserWarning):
    """Something that a person should know; the work goes on. The command line prints it as one line."""


class MissingExtraError(CdoError, ImportError):
    """A verb whose optional dependencies are not installed."""


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Turn a failed import inside the block into the pip command that mends it.

    Args:
        extra: name of the extra in `pyproject.toml`, e.g. ``"train"``.
        purpose: what the import is for, e.g. ``"training"``; begins the message.

    Raises:
        MissingExtraError: if a module imported in the block is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "cdo_ad":
            raise  # our own module is missing: a defect, not an extra
        raise MissingExtraError(
            f"{purpose} needs the module {error.name!r}: run  pip install 'cdo-ad[{extra}]'"
        ) from error
