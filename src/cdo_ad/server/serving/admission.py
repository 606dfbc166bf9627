"""How much may be in the house at once: images and pixels that were admitted and are not yet answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cdo_ad.server.errors import OverloadedError
from cdo_ad.server.metrics import Metrics

__all__ = ["Admission"]


class Admission:
    """Counts what is in the house; refuses beyond the bounds instead of letting it wait without end."""

    def __init__(self, images: int, pixels: int, metrics: Metrics) -> None:
        """Admit so many images, of so many pixels together (one image always fits)."""
        self._limits = images, pixels
        self._images = self._pixels = 0
        self._lock = threading.Lock()
        self._metrics = metrics

    @property
    def images(self) -> int:
        """Images in the house."""
        return self._images

    @property
    def busy(self) -> bool:
        """True where less than half of the room is left: work that can be left out should be."""
        return 2 * self._images > self._limits[0]

    @contextmanager
    def image(self) -> Iterator[None]:
        """Hold a place for an image.

        Raises:
            OverloadedError: there is none.
        """
        with self._lock:
            if self._images >= self._limits[0]:
                self._metrics.refused.labels("queue").inc()
                raise OverloadedError(f"{self._limits[0]} images are waiting already: try again in a second")
            self._images += 1
            self._metrics.in_flight.set(self._images)
        try:
            yield
        finally:
            with self._lock:
                self._images -= 1
                self._metrics.in_flight.set(self._images)

    @contextmanager
    def pixels(self, count: int) -> Iterator[None]:
        """Hold memory for the pixels of an image.

        Raises:
            OverloadedError: too many are held.
        """
        with self._lock:
            if self._pixels and self._pixels + count > self._limits[1]:
                self._metrics.refused.labels("pixels").inc()
                raise OverloadedError("large images are waiting already: try again in a second")
            self._pixels += count
        try:
            yield
        finally:
            with self._lock:
                self._pixels -= count
