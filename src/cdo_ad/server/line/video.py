"""Video: every frame of a file; of cameras and streams the newest one, with a new connection after a failure."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdo_ad.errors import needs_extra
from cdo_ad.server.errors import LineError
from cdo_ad.server.line.frames import Frame, Newest

__all__ = ["LiveSource", "VideoFile", "camera_address"]

OPEN_SECONDS, READ_SECONDS = 10.0, 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0


class VideoFile:
    """Every nth frame of a file, in order, as fast as they are judged."""

    live = False

    def __init__(self, path: Path, every: int = 1) -> None:
        """Read a video file; raises LineError where there is none."""
        if not path.is_file():
            raise LineError(f"{path}: there is no such file: name a video, a folder, a camera or an address")
        self._path, self._every, self._count = path, max(1, every), 0

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`."""
        av = _import_av()
        try:
            with av.open(str(self._path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if stop.is_set():
                        return
                    if number % self._every == 0:
                        self._count += 1
                        yield Frame(f"{self._path.name} {number}", frame.to_ndarray(format="rgb24"))
        except av.FFmpegError as error:
            raise LineError(f"{self._path}: cannot be read as a video ({error}): convert it to H.264") from error

    def close(self) -> None:
        """See `Source.close`."""

    def status(self) -> dict[str, Any]:
        """See `Source.status`."""
        return {"connected": True, "arrived": self._count}


class LiveSource:
    """A camera or a stream that a thread reads without a pause, so that what is judged is new."""

    live = True

    def __init__(self, name: str, address: str, format: str | None = None, **options: str) -> None:
        """Read what FFmpeg can open.

        Args:
            name: of the frames.
            address: `rtsp://`, `http://`, a device.
            format: FFmpeg's name of the device's kind; None where the address says it.
            options: for FFmpeg.
        """
        self._name, self._address, self._format, self._options = name, address, format, options
        self._newest = Newest()
        self._connected, self._error, self._connections = False, "", 0

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`."""
        _import_av()
        thread = threading.Thread(target=self._read, args=(stop,), name=f"read {self._name}", daemon=True)
        thread.start()
        while not stop.is_set():
            if (frame := self._newest.take(0.2)) is not None:
                yield frame
        thread.join(READ_SECONDS + 1)

    def close(self) -> None:
        """See `Source.close`."""

    def status(self) -> dict[str, Any]:
        """See `Source.status`."""
        counts = {"arrived": self._newest.arrived, "dropped": self._newest.dropped, "connections": self._connections}
        return {"connected": self._connected, "error": self._error, **counts}

    def _read(self, stop: threading.Event) -> None:
        av, pause = _import_av(), FIRST_PAUSE
        while not stop.is_set():
            try:
                before = self._newest.arrived
                self._read_connection(av, stop)
                self._error = "the stream ended"
            except (av.FFmpegError, OSError, IndexError, ValueError) as error:
                self._error = str(error)
            self._connected = False
            pause = FIRST_PAUSE if self._newest.arrived > before else min(LONGEST_PAUSE, 2 * pause)
            stop.wait(pause)

    def _read_connection(self, av: Any, stop: threading.Event) -> None:
        timeout = (OPEN_SECONDS, READ_SECONDS)
        with av.open(self._address, format=self._format, options=self._options, timeout=timeout) as container:
            container.streams.video[0].thread_type = "SLICE"  # frames at once, not a few later
            self._connections += 1
            for frame in container.decode(video=0):
                if stop.is_set():
                    return
                self._connected, self._error = True, ""
                self._newest.put(Frame(self._name, frame.to_ndarray(format="rgb24"), time.time()))


def camera_address(index: str) -> tuple[str, str]:
    """(address, format) of FFmpeg for a camera of this machine: a number, on Windows its name.

    Raises:
        LineError: a camera that is no number where one is needed.
    """
    if sys.platform == "win32":
        return f"video={index}", "dshow"
    if not index.isdigit():
        raise LineError(f"camera:{index}: name the camera by its number, e.g. camera:0")
    return (index, "avfoundation") if sys.platform == "darwin" else (f"/dev/video{index}", "v4l2")


def _import_av() -> Any:
    with needs_extra("line", "reading video"):
        import av
    av.logging.set_level(av.logging.PANIC)
    return av
