"""What a person should know of a data set that was read: what was passed over, not used, or interpreted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cdo_ad.data.labels import is_good
from cdo_ad.data.listing import is_folder, list_folder
from cdo_ad.files import relative_name
from cdo_ad.types import GOOD, Sample

__all__ = ["Notice", "notices"]

NEVER_USED = ("xyz", "gt", "ground_truth", "masks")
"""Folders whose images no reader gives as samples: point clouds, and masks, of which some belong to good images."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to know."""

    kind: str
    """A short fixed name, for programs: `good-word`, `passed-over`, `own-outputs`, `unused`."""
    text: str
    """What, and what to do; one line."""
    files: tuple[Path, ...]


def notices(root: Path, category: str | None, samples: Sequence[Sample], *, labels_from_folders: bool) -> list[Notice]:
    """Compare what lies in a data set's folder with what its reader gave.

    Args:
        root: the data set's folder.
        category: the one that was read; None where there is only one.
        samples: what was read.
        labels_from_folders: False where a table of the data set states the labels.

    Raises:
        DataError: if the folder cannot be listed.
    """
    base = root / category if category and is_folder(root / category) else root
    listing = list_folder(base, recursive=True)
    real = cache(os.path.realpath)  # a reader may come to a folder by another path, such as through a link
    used = {(real(path.parent), path.name) for s in samples for path in (s.path, s.mask_path) if path is not None}
    unused = tuple(
        path
        for path in listing.images
        if (real(path.parent), path.name) not in used
        and not any(part.casefold() in NEVER_USED for part in path.relative_to(base).parts[:-1])
    )
    good_words = _good_words(base, samples) if labels_from_folders else {}
    found = [_good_word(folder, paths) for folder, paths in good_words.items()]
    if listing.unread:
        first = next(iter(listing.unread.values()))
        found.append(
            Notice(
                "passed-over", f"{_files(len(listing.unread))} passed over; the first: {first}", tuple(listing.unread)
            )
        )
    if listing.own:
        text = f"{base}: {_files(len(listing.own))} left out, overlays and maps that cdo-ad itself wrote"
        found.append(Notice("own-outputs", text, tuple(listing.own)))
    if unused:
        text = f"{base}: {_files(len(unused))} not used; the first: {relative_name(unused[0], base)}"
        found.append(Notice("unused", text, unused))
    return found


def _good_words(base: Path, samples: Sequence[Sample]) -> dict[Path, list[Path]]:
    """Folders below `base` that hold good images and mean good by another word, and their images."""
    found: dict[Path, list[Path]] = {}
    for sample in samples:
        folders = [folder for folder in sample.path.parents if folder != base and folder.is_relative_to(base)]
        named = next((folder for folder in folders if is_good(folder.name)), None)
        if sample.defect_type == GOOD and named is not None and named.name.casefold() != GOOD:
            found.setdefault(named, []).append(sample.path)
    return found


def _good_word(folder: Path, paths: Sequence[Path]) -> Notice:
    text = f"{folder}: its {_files(len(paths))} are taken as good, for the folder's name"
    return Notice("good-word", text, tuple(paths))


def _files(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
