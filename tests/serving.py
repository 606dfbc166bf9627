"""A real server for tests: in a thread of this process, or in a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import fakes
from cdo_ad.server.run import serve_async
from cdo_ad.server.service import Service, opened
from cdo_ad.server.settings import ServerSettings

SOURCE = Path(__file__).parents[1] / "src"


@dataclass
class Served:
    """A running server: its parts, its address, and a client with the key of an admin."""

    service: Service
    address: str
    http: httpx.Client
    grpc: str = ""

    def client(self, role: str) -> httpx.Client:
        """A client with a new key of another role."""
        key = self.service.keys.create(f"{role} {time.time_ns()}", role)
        return httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def inspect(self, data: bytes, product: str = "tiles", **query: Any) -> httpx.Response:
        """Upload an image."""
        files = {"file": ("part.png", data, "image/png")}
        return self.http.post(f"/v1/models/{product}/inspect", files=files, params=query)

    @property
    def host(self) -> str:
        """host:port."""
        return self.address.removeprefix("http://")


@contextmanager
def running(
    folder: Path, run: Path | None = None, product: str = "tiles",
    prepare: Callable[[Service], None] = lambda service: None, **settings: Any,
) -> Iterator[Served]:  # fmt: skip
    """Serve a run as a product until the block ends, which must end gracefully; `prepare` is called before."""
    values: dict[str, Any] = {"folder": folder, "port": 0, "backend": "torch", "device": "cpu", **settings}
    with opened(ServerSettings.checked(**values)) as service:
        if run is not None:
            service.serve_run(run, product)
        prepare(service)
        stop, ready, address = threading.Event(), threading.Event(), [""]

        def told(where: str) -> None:
            address[:] = where.split(", gRPC at ")
            ready.set()

        thread = threading.Thread(target=lambda: asyncio.run(serve_async(service, told, stop)))
        thread.start()
        try:
            assert ready.wait(60)
            headers = {}
            if service.settings.auth:
                headers = {"Authorization": f"Bearer {service.keys.create(f'test {time.time_ns()}', 'admin')}"}
            with httpx.Client(base_url=address[0], headers=headers, timeout=60) as http:
                yield Served(service, address[0], http, address[-1])
        finally:
            stop.set()
            thread.join(30)
        assert not thread.is_alive()


class Process:
    """`cdo-ad serve` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, log: Path | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "cdo_ad.cli.main", "serve", "--state", str(folder), "--port", "0", *arguments]
        self._log = (log or folder.with_suffix(".log")).open("ab")
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self._log, env=environment, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"ready at (\S+)", line)
        assert found, (line, Path(self._log.name).read_text())
        self.address = found[1]

    def kill(self) -> None:
        """As a power cut would end it."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Gracefully; returns the exit code."""
        self._end(signal.SIGTERM)
        return self._process.returncode

    def _end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def png(seed: int = 0, defect: str = "good", size: tuple[int, int] | None = (64, 80)) -> bytes:
    """An image file as bytes."""
    return as_png(fakes.make_image(seed, defect, size)[0])


def as_png(array: np.ndarray) -> bytes:
    """Any array as bytes of a PNG."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for something to become true; gives it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not so within {seconds} seconds")
