"""The good images, or tiles of them, at the networks' size: decoded once and kept where they fit, else read each time.

Both ways give the same numbers: one function decodes and resizes, as the model does with a new image. Nothing is
rounded, so training, calibration and inference see the same image.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cdo_ad.data.decode import UInt8Array, image_size, read_image
from cdo_ad.data.reading import require_size
from cdo_ad.data.surface import CHANNELS, read_surface
from cdo_ad.errors import ConfigError, DataError, ImageError
from cdo_ad.method.preprocess import resize
from cdo_ad.tiles import Box, cut, tile_boxes

__all__ = ["ImageStore", "load_all", "load_image", "to_size"]

NAMES_SHOWN = 10


class ImageStore(Dataset[Tensor]):
    """Images at the training size; item i is a (3, h, w) float32 tensor, RGB in [0, 255].

    With depth it is (5, h, w), the surface behind the colours, see `cdo_ad.data.surface`.

    Item i shows the image `paths[source[i]]`: all of it, or a tile.

    All images are decoded when the store is made, so that every bad file is known before any training: into one
    tensor if that takes no more than `memory_budget` bytes, else only to check them.
    """

    images: Tensor | None
    """(N, 3 or 5, h, w) float32, all images in the order of `paths`; None where they are read at each access."""

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        memory_budget: int = 4 * 2**30,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
        verify: bool = True,
        tile: int = 0,
        depth: bool = False,
    ) -> None:
        """Load the images, or check them.

        Args:
            paths: the images' files.
            size: (h, w) of the training images, in pixels.
            memory_budget: bytes that the kept images may take: 12 * h * w for each, 20 with depth. 0 keeps none.
            workers: threads that load; 0 loads in the calling thread. Any number gives the same bytes.
            progress: called in the calling thread as (images done, images in all).
            verify: decode all images once even if they are not kept.
            tile: side of the tiles in pixels of the images, see `cdo_ad.tiles`; 0 for whole images.
            depth: read the point cloud of each image too; not with tiles.

        Raises:
            ConfigError: if the size is not positive.
            DataError: if there are no images.
            ImageError: if images or point clouds cannot be read; names the first ten and says how many there are.
        """
        if len(size) != 2 or min(size) < 1 or workers < 0:
            raise ConfigError(f"size must be two positive numbers, workers 0 or more, got {size} and {workers}")
        if not paths:
            raise DataError("there are no images to train on: give at least one")
        self.paths = tuple(paths)
        self.size = (int(size[0]), int(size[1]))
        self.images = None
        self.depth = depth
        self._recent: tuple[int, UInt8Array] | None = None
        boxes: list[list[Box | None]] = [[None]] * len(self.paths)
        if tile:
            sizes = [(0, 0)] * len(self.paths)

            def look(i: int) -> None:
                sizes[i] = image_size(self.paths[i])

            _for_each(self.paths, look, workers, None)  # names all that cannot be read
            boxes = [list(tile_boxes(found, tile)) for found in sizes]
        self.source = np.repeat(np.arange(len(self.paths)), [len(own) for own in boxes])
        """(N,) the place in `paths` of each item's image."""
        self._boxes = [box for own in boxes for box in own]
        channels = 3 + (CHANNELS if depth else 0)
        if len(self) * 4 * channels * self.size[0] * self.size[1] <= memory_budget:
            self.images = torch.empty((len(self), channels, *self.size), dtype=torch.float32)
            with _one_torch_thread():
                _for_each(self.paths, self._load, workers, progress)
        elif verify:
            _for_each(self.paths, self._check, workers, progress)

    def _load(self, number: int) -> None:
        """Keep all items of an image."""
        assert self.images is not None
        image = _read(self.paths[number])
        for i in range(*np.searchsorted(self.source, (number, number + 1)).tolist()):
            box = self._boxes[i]
            self.images[i, :3] = to_size(image if box is None else cut(image, box), self.size)
            if self.depth:
                self.images[i, 3:] = torch.from_numpy(read_surface(self.paths[number], self.size))

    def _check(self, number: int) -> None:
        _read(self.paths[number])
        if self.depth:
            read_surface(self.paths[number], self.size)

    @property
    def cached(self) -> bool:
        """True if the images are kept in memory, so that data-loader workers would only copy them about."""
        return self.images is not None

    def items(self, images: Sequence[int]) -> list[int]:
        """The items that show some of the images, which are given by their places in `paths`."""
        found: list[int] = np.flatnonzero(np.isin(self.source, images)).tolist()
        return found

    def some(self, places: Sequence[int]) -> ImageStore:
        """A store of some of the items; it shares their memory if they are all."""
        chosen = copy.copy(self)
        chosen.source = self.source[list(places)]
        chosen._boxes = [self._boxes[i] for i in places]
        if self.images is not None and len(places) < len(self):
            chosen.images = self.images[list(places)]
        return chosen

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        if self.images is not None:
            return self.images[index]
        number, box = int(self.source[index]), self._boxes[index]
        if box is None:
            return load_image(self.paths[number], self.size, self.depth)
        if self._recent is None or self._recent[0] != number:  # tiles of one image mostly come one after the other
            self._recent = number, _read(self.paths[number])
        return to_size(cut(self._recent[1], box), self.size)


def load_image(path: Path | str, size: tuple[int, int], depth: bool = False) -> Tensor:
    """Decode an image and bring it to the training size.

    Args:
        path: its file.
        size: (h, w) in pixels.
        depth: read its point cloud too.

    Returns:
        (3, h, w) float32 RGB in 0..255, not rounded; with depth (5, h, w), the surface behind the colours.

    Raises:
        ImageError: as `read_image` and `read_surface`, or a side under 8 pixels.
    """
    image = to_size(_read(path), size)
    return torch.cat([image, torch.from_numpy(read_surface(path, size))]) if depth else image


def _read(path: Path | str) -> UInt8Array:
    return require_size(read_image(path), str(path))


def to_size(image: UInt8Array, size: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 RGB to (3, h, w) float32 in 0..255, not rounded."""
    return resize(torch.from_numpy(image).permute(2, 0, 1)[None].float(), size)[0].contiguous()


def load_all(
    paths: Sequence[Path],
    size: tuple[int, int],
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Load images into one tensor; beyond it, only the image in work by each thread is held at its full size.

    Returns:
        (N, 3, h, w) float32, in the order of `paths`.

    Raises:
        ImageError: if images cannot be decoded; names the first ten of them and says how many there are.
    """
    images = ImageStore(paths, size, sys.maxsize, workers, progress).images
    assert images is not None
    return images


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch from splitting each small resize over all cores.

    Images are loaded side by side instead; on a busy machine the split made loading ten times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _for_each(
    paths: Sequence[Path],
    job: Callable[[int], object],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Call job(i) for each path, in threads; afterwards raise one ImageError for all that failed."""

    def attempt(i: int) -> ImageError | None:
        try:
            job(i)
        except ImageError as error:
            return error
        return None

    failed: list[tuple[Path, ImageError]] = []
    for i, error in enumerate(_threaded(attempt, range(len(paths)), workers)):
        if error is not None:
            failed.append((paths[i], error))
        if progress is not None:
            progress(i + 1, len(paths))
    if len(failed) == 1:
        raise failed[0][1]
    if failed:
        names = ", ".join(str(path) for path, _ in failed[:NAMES_SHOWN])
        more = f" and {len(failed) - NAMES_SHOWN} more" if len(failed) > NAMES_SHOWN else ""
        raise ImageError(f"{len(failed)} of {len(paths)} images cannot be used: {names}{more}; {failed[0][1]}")


def _threaded(
    job: Callable[[int], ImageError | None], items: Iterable[int], workers: int
) -> Iterator[ImageError | None]:
    """Map in order, in `workers` threads; an interrupt drops what has not begun."""
    if workers == 0:
        yield from map(job, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(job, items)
