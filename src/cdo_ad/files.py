"""Files written whole or not at all, folders that one process at a time writes to, and JSON documents with a schema."""

from __future__ import annotations

import glob
import io
import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cdo_ad.errors import BusyError, OutputError

__all__ = [
    "Document",
    "append_line",
    "exclusive",
    "finite",
    "problem",
    "relative_name",
    "write_bytes",
    "write_json",
    "write_text",
    "writing",
]

LOCK = ".lock"


class Document(BaseModel):
    """Base of what is kept as JSON: immutable, no unknown entries, no NaN or infinity, no conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for `json.dumps`."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, values: object) -> Self:
        """The inverse of `to_json`.

        Raises:
            pydantic.ValidationError: an entry that is missing, unknown, of another type or out of range.
        """
        return cls.model_validate_json(json.dumps(values))


def problem(error: ValidationError) -> str:
    """The first fault that a schema found, as one line: which entry, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    text = first["msg"].removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def finite(value: Any) -> Any:
    """The same nest of dictionaries, lists and tuples with None for NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def relative_name(path: Path, root: Path) -> str:
    """A file's name inside a folder, with forward slashes; for a file elsewhere, its path as it is."""
    real = (Path(os.path.realpath(path)), Path(os.path.realpath(root)))  # Path.resolve raises for links in a circle
    for file, folder in ((path, root), real):
        if file.is_relative_to(folder):
            return file.relative_to(folder).as_posix()
    return path.as_posix()


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an error of the operating system inside the block into one line that names the file.

    Raises:
        OutputError: the disk is full, the folder cannot be written to, a part of the path is a file, ...
    """
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else str(path)
        raise OutputError(
            f"{name} cannot be written: {error.strerror or error}; check free space and rights"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and make its folder; raises OutputError."""
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}-{threading.get_ident()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed while they wrote the file have left beside it."""
    if os.name != "posix":  # elsewhere a signal of 0 is not a question
        return
    prefix = f".{path.name[:200]}."
    for file in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        number = file.name.removeprefix(prefix).partition("-")[0]
        try:
            if number.isdigit():
                os.kill(int(number), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
        except (OSError, OverflowError):  # another user's process
            continue


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text whole or not at all; raises OutputError."""
    write_bytes(path, text.encode())


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all; raises OutputError, and ValueError for a NaN."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def append_line(file: io.FileIO, text: str) -> None:
    """Add a line to an unbuffered file whole or not at all; raises OutputError."""
    end, line = file.tell(), (text + "\n").encode()
    with writing(str(file.name)):
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)
            raise


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; a killed process lets it go.

    Raises:
        BusyError: another process holds it.
        OutputError: the folder cannot be written to.
    """
    import filelock

    with writing(folder):
        lock = filelock.FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise BusyError(
                f"{folder}: another process is writing there: wait for it, or choose another folder"
            ) from error
    try:
        yield
    finally:
        lock.release()
