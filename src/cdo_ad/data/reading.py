"""Read image files in threads, a few ahead of whoever uses them; a file that fails gives its error in its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cdo_ad.data.decode import read_image
from cdo_ad.errors import ImageError

__all__ = ["SMALLEST_SIDE", "ahead", "read_ahead", "require_size"]

Given = TypeVar("Given")
Result = TypeVar("Result")

SMALLEST_SIDE = 8
"""Pixels: a shorter side is no image of a product but a mistake."""


def require_size(image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    """The image itself; raises ImageError if a side is shorter than `SMALLEST_SIDE`."""
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels is too small: each side needs {SMALLEST_SIDE} or more")
    return image


def ahead(
    function: Callable[[Given], Result], items: Iterable[Given], threads: int = 2
) -> Iterator[tuple[Given, Result]]:
    """Call a function of each item in threads, a few ahead of the consumer; yields (item, result) in order."""
    queue: deque[tuple[Given, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            queue.append((item, pool.submit(function, item)))
            if len(queue) > 2 * threads:
                first, future = queue.popleft()
                yield first, future.result()
        for first, future in queue:
            yield first, future.result()


def read_ahead(paths: Iterable[Path], threads: int = 2) -> Iterator[tuple[Path, npt.NDArray[np.uint8] | ImageError]]:
    """Decode files in threads, a few ahead of the consumer, in order; a file that fails yields its error."""
    return ahead(_read, paths, threads)


def _read(path: Path) -> npt.NDArray[np.uint8] | ImageError:
    try:
        return require_size(read_image(path), str(path))
    except ImageError as error:
        return error
