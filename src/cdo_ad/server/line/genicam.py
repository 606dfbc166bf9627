"""Industrial cameras by GenICam (GigE Vision, USB3 Vision): needs `harvesters` and the producer of the camera's vendor.

Without a producer (a `.cti` file) there is no camera to be found, and this says so. Tested against the interface of
harvesters only: no producer is installed where the tests run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import needs_extra
from cdo_ad.server.errors import LineError
from cdo_ad.server.line.frames import Frame, Newest

__all__ = ["GenicamSource", "as_pixels"]

FETCH_SECONDS = 3.0


class GenicamSource:
    """The newest image of a camera."""

    live = True

    def __init__(self, name: str, producer: Path, serial: str | None = None) -> None:
        """Use a camera.

        Args:
            name: of the frames.
            producer: the vendor's `.cti` file.
            serial: the camera's serial number; None for the first camera.

        Raises:
            LineError: there is no such producer.
        """
        if not producer.is_file():
            raise LineError(f"{producer}: there is no such GenTL producer: install the SDK of the camera's vendor")
        self._name, self._producer, self._serial = name, producer, serial
        self._newest, self._connected, self._error = Newest(), False, ""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`."""
        with needs_extra("genicam", "a GenICam camera"):
            from harvesters.core import Harvester
        thread = threading.Thread(target=self._read, args=(Harvester, stop), name=f"read {self._name}", daemon=True)
        thread.start()
        while not stop.is_set():
            if (frame := self._newest.take(0.2)) is not None:
                yield frame
        thread.join(FETCH_SECONDS + 1)

    def close(self) -> None:
        """See `Source.close`."""

    def status(self) -> dict[str, Any]:
        """See `Source.status`."""
        counts = {"arrived": self._newest.arrived, "dropped": self._newest.dropped}
        return {"connected": self._connected, "error": self._error, **counts}

    def _read(self, harvester: Any, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self._read_camera(harvester, stop)
            except Exception as error:  # GenTL has errors of its own for each producer
                self._error, self._connected = str(error), False
                stop.wait(2)

    def _read_camera(self, harvester: Any, stop: threading.Event) -> None:
        with harvester() as found:
            found.add_file(str(self._producer))
            found.update()
            if not found.device_info_list:
                raise LineError(f"{self._producer.name} finds no camera: check cable, power and addresses")
            chosen = {"serial_number": self._serial} if self._serial else 0
            with found.create(chosen) as camera:
                camera.start()
                while not stop.is_set():
                    with camera.fetch(timeout=FETCH_SECONDS) as buffer:
                        part = buffer.payload.components[0]
                        pixels = as_pixels(part.data, part.height, part.width, part.data_format)
                    self._connected, self._error = True, ""
                    self._newest.put(Frame(self._name, pixels, time.time()))


def as_pixels(data: npt.NDArray[Any], height: int, width: int, kind: str) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB from the buffer of a camera.

    Raises:
        LineError: a pixel format that is not read: set the camera to Mono8, RGB8 or BGR8.
    """
    if kind == "Mono8":
        return np.repeat(data.reshape(height, width, 1), 3, axis=2).astype(np.uint8)
    if kind in ("RGB8", "RGB8Packed", "BGR8", "BGR8Packed"):
        pixels = data.reshape(height, width, 3)
        return np.ascontiguousarray(pixels[..., ::-1] if kind.startswith("BGR") else pixels).astype(np.uint8)
    raise LineError(f"the pixel format {kind} is not read: set the camera to Mono8, RGB8 or BGR8")
