"""The image files that a user's arguments name: files, folders with all below them, globs."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from cdo_ad.data.listing import is_folder, list_folder
from cdo_ad.data.marks import is_own_output
from cdo_ad.errors import CdoWarning, ConfigError, DataError

__all__ = ["find_sources"]


def find_sources(arguments: Sequence[str | Path]) -> dict[Path, Path | str]:
    """Find the files that arguments name. What one of them lacks does not stop the others.

    Args:
        arguments: files as they are, folders with all images below them, globs.

    Returns:
        For each file, in order, its name relative to the folder that was given; whether it can be read is left to
        whoever reads it. For each argument, file or folder that gives no image, why: a sentence that names it.

    Raises:
        ConfigError: an argument that is empty.

    Warns:
        CdoWarning: if overlays or maps that this package wrote are left out.
    """
    found: dict[Path, Path | str] = {}
    own: list[Path] = []
    for argument in map(str, arguments):
        if not argument:
            raise ConfigError("an empty path names nothing: give files, folders or quoted globs")
        path = Path(argument)
        if is_folder(path) or os.path.lexists(path) or not glob.has_magic(argument):
            matches = [path]
        else:
            matches = sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207 (may be absolute)
        for match in matches:
            if is_folder(match):
                own += _add_folder(found, match, match if match == path else match.parent)
            elif is_own_output(match):
                own.append(match)
            else:
                found.setdefault(match, Path(match.name))
        if not matches:
            found[path] = f"{argument}: matches no file: name a file, a folder or a quoted glob"
    if own:
        text = f"overlays and maps that cdo-ad itself wrote are left out: {len(own)}; the first: {own[0]}"
        warnings.warn(text, CdoWarning, stacklevel=2)
    return found


def _add_folder(found: dict[Path, Path | str], folder: Path, base: Path) -> list[Path]:
    """Add what a folder holds, named relative to `base`; gives what is left out."""
    try:
        listing = list_folder(folder, recursive=True)
    except DataError as error:
        found[folder] = str(error)
        return []
    for file in listing.images:
        found.setdefault(file, file.relative_to(base))
    found.update(listing.unread)
    if not (listing.images or listing.unread or listing.own):
        found[folder] = f"{folder}: holds no images: name files, a folder with images or a quoted glob"
    return listing.own
