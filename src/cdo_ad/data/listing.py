"""Which files of a folder are images, and what is passed over: nothing that a person may take for an image, untold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cdo_ad.data.files import reason
from cdo_ad.data.marks import is_own_output
from cdo_ad.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES", "Listing", "holds_images", "is_folder", "list_folder", "list_images", "require_folder",
    "subfolders",
]  # fmt: skip

IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})  # fmt: skip
"""The endings of image files, in any letter case. Decoding goes by the content, never by the ending."""

UNREAD_SUFFIXES = {
    **dict.fromkeys((".jxl",), "JPEG XL"),
    **dict.fromkeys((".exr", ".hdr", ".pfm"), "a floating-point image"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw"), "a camera's raw file"),
    **dict.fromkeys((".dcm", ".pam", ".pcx", ".psd", ".sgi", ".tga", ".jxr", ".wdp"), "an image of a kind"),
}
"""Endings of images that are not read, and what they are."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in a folder, each sorted by its path below it."""

    images: list[Path]
    """Files with an image's ending, whether or not they can be read: broken links and pipes are among them, so that
    whoever reads the images names them."""
    unread: dict[Path, str]
    """Images of kinds that are not read, folders that cannot be listed, broken links, and why: a sentence that names
    the file."""
    own: list[Path]
    """Overlays and maps that this package wrote; never images."""


def list_folder(folder: Path | str, recursive: bool = False) -> Listing:
    """List a folder. Hidden files and folders (names that begin with a dot) are left out; links are followed.

    Args:
        folder: the folder.
        recursive: also all folders below it, each once, so that links in a circle end.

    Raises:
        DataError: if `folder` is no folder or cannot be listed.
    """
    folder = Path(folder)
    images: list[Path] = []
    own: list[Path] = []
    unread: dict[Path, str] = {}
    waiting, seen = [folder], set()
    while waiting:
        here = waiting.pop()
        try:
            identity = require_folder(here)
            entries = [] if identity in seen else _entries(here)
        except DataError as error:
            if here == folder:
                raise
            unread[here] = str(error)
            continue
        seen.add(identity)
        for path, is_directory in entries:
            ending = path.suffix.lower()
            if is_directory:
                if recursive:
                    waiting.append(path)
            elif ending in UNREAD_SUFFIXES:
                unread[path] = f"{path}: {UNREAD_SUFFIXES[ending]} that is not read: save it as PNG or TIFF"
            elif ending in IMAGE_SUFFIXES:
                (own if is_own_output(path) else images).append(path)
            elif path.is_symlink() and not path.exists():
                unread[path] = f"{path}: a link to what is missing: mend or remove the link"

    def below(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    return Listing(sorted(images, key=below), {path: unread[path] for path in sorted(unread, key=below)}, sorted(own))


def list_images(folder: Path | str, recursive: bool = False) -> list[Path]:
    """The images of a folder, without what is passed over; see `list_folder`.

    Raises:
        DataError: as `list_folder`.
    """
    return list_folder(folder, recursive).images


def holds_images(folder: Path) -> bool:
    """Tell whether a folder holds an image that is not of our own making; the rest of it is not looked at."""
    return any(
        not is_directory and path.suffix.lower() in IMAGE_SUFFIXES and not is_own_output(path)
        for path, is_directory in _entries(folder)
    )


def subfolders(folder: Path) -> list[Path]:
    """The folders inside `folder`, sorted by name, hidden ones left out; none if it is no folder.

    Raises:
        DataError: if it cannot be listed.
    """
    return [path for path, is_directory in _entries(folder) if is_directory] if is_folder(folder) else []


def is_folder(path: Path) -> bool:
    """Tell whether there is a folder; False where that cannot be found out."""
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises for a folder that may not be entered)


def require_folder(folder: Path) -> tuple[int, int]:
    """The device and number that a folder has on disk, whatever links lead to it.

    Raises:
        DataError: if it is missing, no folder, or may not be entered.
    """
    try:
        found = folder.stat()
    except FileNotFoundError as error:
        raise DataError(f"{folder}: there is no such folder: check the path") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be read ({reason(error)}): check the path and its rights") from error
    if not is_folder(folder):
        raise DataError(f"{folder}: is a file, not a folder: give the folder that holds the images")
    return found.st_dev, found.st_ino


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """What a folder holds, sorted by name, without what is hidden; each with whether it is, or links to, a folder."""
    try:
        with os.scandir(folder) as entries:
            found = [(folder / entry.name, _leads_to_folder(entry)) for entry in entries if entry.name[0] != "."]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be listed ({reason(error)}): check the folder and its rights") from error
    return sorted(found)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or what may not be looked at: reading it will say so
        return False
