"""What a source gives, and the contract of all sources."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Frame", "Newest", "Source", "nothing"]


def nothing(_: bool) -> None:
    """Do nothing once a frame is judged."""


@dataclass(frozen=True)
class Frame:
    """An image of a source."""

    name: str
    content: bytes | npt.NDArray[np.uint8]
    """The bytes of a file, or (H, W, 3) RGB pixels of a camera."""
    at: float = field(default_factory=time.time)
    """When it arrived, seconds since 1970."""
    done: Callable[[bool], None] = nothing
    """Called with True once the decision is kept, with False where the image cannot be judged."""


class Source(Protocol):
    """Where images come from."""

    live: bool
    """True where an image that is not taken at once is worthless: the newest one counts."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Images until there are no more or `stop` is set; it waits for them as long as needed.

        Raises:
            LineError: the source cannot be used at all.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections, after `frames` ended."""
        ...

    def status(self) -> dict[str, Any]:
        """What people want to know of it: whether it is connected, what was dropped."""
        ...


class Newest:
    """Room for one frame: a newer one replaces it, and what was replaced is counted."""

    def __init__(self) -> None:
        """Empty."""
        self._frame: Frame | None = None
        self._changed = threading.Condition()
        self.arrived = self.dropped = 0

    def put(self, frame: Frame) -> None:
        """Put a frame in the place of the one that nobody has taken."""
        with self._changed:
            self.arrived += 1
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def take(self, seconds: float) -> Frame | None:
        """Take the frame, waiting for one for a while; None where none came."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None, seconds)
            frame, self._frame = self._frame, None
            return frame
