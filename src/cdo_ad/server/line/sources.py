"""From the text that names a source to the source.

FOLDER                          images in a folder, and those that come
FILE.mp4                        every frame of a video
camera:0                        a camera of this machine
rtsp://... http://...           a stream
genicam:PRODUCER.cti[?serial=S] an industrial camera
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cdo_ad.server.errors import LineError
from cdo_ad.server.line.folder import After, FolderSource
from cdo_ad.server.line.frames import Source
from cdo_ad.server.line.genicam import GenicamSource
from cdo_ad.server.line.triggers import HttpTrigger, ModbusTrigger, Trigger, Triggered, Waiting
from cdo_ad.server.line.video import LiveSource, VideoFile, camera_address

__all__ = ["open_source", "open_trigger"]


def open_source(
    text: str, state: Path, *, name: str = "", after: After = "keep", every: int = 1, once: bool = False,
    trigger: Trigger | None = None,
) -> Source:  # fmt: skip
    """The source that a text names.

    Args:
        text: see the top of this module.
        state: folder for what a source has to remember.
        name: of the frames of a camera; default: the text without passwords.
        after: of a folder's files, see `FolderSource`.
        every: of a video's frames, see `VideoFile`.
        once: of a folder, see `FolderSource`.
        trigger: of a live source: only the first image after each trigger.

    Raises:
        LineError: it names nothing that can be used.
    """
    source = _open(text, state, name or _shown(text), after, every, once)
    return source if trigger is None else Triggered(source, trigger)


def _open(text: str, state: Path, name: str, after: After, every: int, once: bool) -> Source:
    scheme, _, rest = text.partition(":")
    if scheme == "camera":
        address, format = camera_address(rest)
        return LiveSource(name, address, format)
    if scheme == "genicam":
        parts = urlsplit(rest)
        return GenicamSource(name, Path(parts.path), parse_qs(parts.query).get("serial", [None])[0])
    if text.startswith(("rtsp://", "rtsps://")):
        return LiveSource(name, text, rtsp_transport="tcp")
    if text.startswith(("http://", "https://")):
        return LiveSource(name, text)
    path = Path(text)
    if path.is_dir():
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        return FolderSource(path, state / f"seen-{digest}.sqlite", after, once=once)
    return VideoFile(path, every)


def open_trigger(text: str) -> Trigger:
    """The trigger that a text names: `http://HOST:PORT`, `modbus://HOST:PORT/COIL`, `server` for the server's route.

    Raises:
        LineError: it names none.
    """
    if text == "server":
        return Waiting()
    parts = urlsplit(text)
    try:
        if parts.scheme == "http" and parts.hostname and parts.port is not None:
            return HttpTrigger(parts.hostname, parts.port)
        if parts.scheme == "modbus" and parts.hostname:
            return ModbusTrigger(parts.hostname, parts.port or 502, int(parts.path.strip("/")))
    except ValueError:
        pass
    raise LineError(f"{text!r} is no trigger: write http://HOST:PORT or modbus://HOST:PORT/COIL")


def _shown(text: str) -> str:
    """The text without what nobody should read."""
    parts = urlsplit(text)
    return text if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
