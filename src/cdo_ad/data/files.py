"""Reading files that others wrote: regular files only, up to a bound, and every failure names the file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cdo_ad.errors import ImageError

__all__ = ["DAMAGED", "MAX_BYTES", "read_bytes", "read_start", "reason"]

MAX_BYTES = 2 * 2**30
"""The largest file that is read: 2 GiB."""

DAMAGED = "copy it again from its source, or take it out of the folder"
"""What to do about a damaged file."""

_OTHER_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_bytes(path: Path | str) -> bytes:
    """The content of an image's file.

    Raises:
        ImageError: if the file is missing, unreadable, empty, above `MAX_BYTES` or no regular file.
    """
    data = _read(path, MAX_BYTES + 1)
    if not data:
        raise ImageError(f"{path}: the file is empty: {DAMAGED}")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{path}: larger than {MAX_BYTES // 2**30} GiB: cut it into smaller images")
    return data


def read_start(path: Path | str, count: int) -> bytes:
    """The first `count` bytes of a file, or all of a shorter one; raises ImageError as `read_bytes`."""
    return _read(path, count)


def reason(error: BaseException) -> str:
    """The first line of a foreign error, for a message of one line."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _read(path: Path | str, most: int) -> bytes:
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = next((word for is_kind, word in _OTHER_KINDS if is_kind(mode)), "no regular file")
            raise ImageError(f"{path}: is {kind}, not a file: name files, or a folder of them")
        with open(path, "rb", opener=_open) as file:
            return file.read(most)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ImageError(f"{path}: a link to a file that is missing: mend or remove the link") from error
        raise ImageError(f"{path}: there is no such file: check the path") from error
    except MemoryError as error:
        raise ImageError(f"{path}: does not fit into memory: cut it into smaller images") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ImageError(f"{path}: cannot be read ({reason(error)}): check the path and its rights") from error


def _open(path: str, flags: int) -> int:
    """Open without waiting for a writer, should the file have become a pipe since it was looked at."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
