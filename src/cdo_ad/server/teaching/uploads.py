"""Good images of a product that is to be taught, before there is a run: a folder for each product."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from cdo_ad.data.kinds import kind_of
from cdo_ad.errors import DataError, ImageError
from cdo_ad.files import write_bytes, writing
from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.serving.decoding import decode, pixels_of
from cdo_ad.server.store.catalogue import check_name

__all__ = ["Uploads"]

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "HEIF": ".heic"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
MOST_IMAGES = 20_000
REGION = "region.png"
LEAST = 0.01
"""Share of the image that a region must cover."""


class Uploads:
    """The folder `teaching` of a server."""

    def __init__(self, folder: Path, most_pixels: int) -> None:
        """Keep images below `folder`; none with more pixels than `most_pixels`."""
        self._folder, self._most_pixels = folder, most_pixels

    def add(self, product: str, data: bytes, name: str) -> str:
        """Keep a good image; returns its hash. The same image twice is one.

        Raises:
            ImageError: no image, or one that is too large; there are too many. ConfigError: no name for a product.
            OutputError: the disk is full.
        """
        folder = self.folder(product)
        pixels_of(data, name, self._most_pixels)
        decode(data, name)
        if len(self.list(product)) >= MOST_IMAGES:
            raise ImageError(f"{name}: there are {MOST_IMAGES:,} images already: that is enough for any product")
        form = kind_of(data, name).format
        digest = hashlib.sha256(data).hexdigest()
        write_bytes(folder / f"{digest}{_SUFFIXES.get(form, f'.{form.lower()}')}", data)
        return digest

    def folder(self, product: str) -> Path:
        """Where the images of a product lie; raises ConfigError for a name that cannot be one."""
        return self._folder / check_name(product)

    def list(self, product: str) -> list[str]:
        """Hashes of a product's images, the oldest first."""
        folder = self.folder(product)
        files = [path for path in folder.glob("*") if _DIGEST.fullmatch(path.stem)] if folder.is_dir() else []
        return [path.stem for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))]

    def read(self, product: str, digest: str) -> bytes:
        """The bytes of an image; raises NotFoundError."""
        return self._file(product, digest).read_bytes()

    def remove(self, product: str, digest: str) -> None:
        """Take an image away; raises NotFoundError."""
        self._file(product, digest).unlink(missing_ok=True)

    def region(self, product: str) -> bytes | None:
        """The product's region of interest: a mask file, white where to inspect; None for the whole image."""
        file = self.folder(product) / REGION
        return file.read_bytes() if file.is_file() else None

    def set_region(self, product: str, data: bytes | None) -> None:
        """Keep a region of interest, or None for the whole image.

        Raises:
            ImageError: it is no image, or too large. DataError: it covers nearly nothing.
        """
        file = self.folder(product) / REGION
        if data is None:
            file.unlink(missing_ok=True)
            return
        pixels_of(data, "the region", self._most_pixels)
        image = decode(data, "the region")
        if (image[..., 0] > 127).mean() < LEAST:
            raise DataError("the region covers nearly nothing: paint where the part is")
        write_bytes(file, data)

    def snapshot(self, product: str, target: Path) -> int:
        """Copy a product's images to `target`/good, where a run will look for them later; returns how many."""
        digests = self.list(product)
        with writing(target):
            (target / "good").mkdir(parents=True)
            for digest in digests:
                file = self._file(product, digest)
                copy = target / "good" / f"{digest[:16]}{file.suffix}"
                try:
                    copy.hardlink_to(file)
                except OSError:  # another disk, or a file system without links
                    copy.write_bytes(file.read_bytes())
        return len(digests)

    def _file(self, product: str, digest: str) -> Path:
        folder = self.folder(product)
        if not _DIGEST.fullmatch(digest) or not (found := list(folder.glob(f"{digest}.*"))):
            raise NotFoundError(f"{product} has no image {digest[:12]!r} to be taught with")
        return found[0]
