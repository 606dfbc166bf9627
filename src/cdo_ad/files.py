"""What the JSON, CSV and HTML files of this package have in common."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

__all__ = ["finite", "relative_name"]


def finite(value: Any) -> Any:
    """The same nest of dictionaries, lists and tuples with None for NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def relative_name(path: Path, root: Path) -> str:
    """A file's name inside a folder, with forward slashes; of a file elsewhere its path as it is."""
    for file, folder in ((path, root), (path.resolve(), root.resolve())):
        if file.is_relative_to(folder):
            return file.relative_to(folder).as_posix()
    return path.as_posix()
