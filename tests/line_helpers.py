"""Real counterparts of the line: a broker, a PLC, a stream, a web address; each on a free port of this machine."""

from __future__ import annotations

import asyncio
import http.server
import io
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """True where somebody accepts connections."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for_port(port: int, seconds: float = 15) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + seconds
    while not listens(port):
        assert time.monotonic() < end, "nobody listens"
        time.sleep(0.05)


@contextmanager
def rtsp_server(port: int) -> Iterator[None]:
    """A stream at `/line` by the system's GStreamer; skips where it is not installed."""
    python = "/usr/bin/python3"
    probe = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if not Path(python).is_file() or subprocess.run([python, "-c", probe], capture_output=True).returncode:
        pytest.skip("no RTSP server: install it with  apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi")
    script = Path(__file__).with_name("rtsp_server.py")
    environment = {"PATH": "/usr/bin:/bin"}
    with subprocess.Popen([python, str(script), str(port)], env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port)
            yield
        finally:
            server.kill()


@contextmanager
def mosquitto(folder: Path, port: int) -> Iterator[None]:
    """A broker; skips where it is not installed."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("no mosquitto: install it with  apt-get install mosquitto")
    settings = folder / f"mosquitto-{port}.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with subprocess.Popen(
        [program, "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as broker:
        end = time.monotonic() + 10
        while not listens(port) and time.monotonic() < end:
            time.sleep(0.05)
        yield
        broker.terminate()


class Plc:
    """A Modbus TCP server, and a client that looks at its coils and registers."""

    def __init__(self, port: int) -> None:
        from pymodbus.client import ModbusTcpClient
        from pymodbus.simulator import DataType, SimData, SimDevice

        bits = [SimData(0, count=64, values=False, datatype=DataType.BITS)]
        words = [SimData(0, count=64, values=0, datatype=DataType.REGISTERS)]
        self._device = SimDevice(id=1, simdata=(bits, bits, words, words))
        self._port, self._loop = port, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_for_port(port)
        self._client = ModbusTcpClient("127.0.0.1", port=port)
        self._client.connect()

    def coil(self, address: int) -> bool:
        return bool(self._client.read_coils(address, count=1, device_id=1).bits[0])

    def registers(self, address: int, count: int = 1) -> list[int]:
        return list(self._client.read_holding_registers(address, count=count, device_id=1).registers)

    def set_coil(self, address: int, value: bool) -> None:
        self._client.write_coil(address, value, device_id=1)

    def close(self) -> None:
        self._client.close()
        asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(5)
        self._thread.join(5)

    def _run(self) -> None:
        from pymodbus.server import ModbusTcpServer

        async def serve() -> None:
            self._server = ModbusTcpServer(self._device, address=("127.0.0.1", self._port))
            await self._server.serve_forever()

        self._loop.run_until_complete(serve())
        self._loop.close()


class Web:
    """An address that takes POSTs, and says 500 while `broken`."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.broken = False
        outer = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not outer.broken:
                    outer.received.append(json.loads(body))
                    outer.keys.append(self.headers["Idempotency-Key"])
                self.send_response(500 if outer.broken else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Stream:
    """Motion JPEG over HTTP; image n has the gray value n; `cut` ends the connections."""

    def __init__(self, pause: float = 0.02) -> None:
        self.number, self.connections, self._cut = 0, 0, 0
        outer = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.connections += 1
                mine = outer._cut
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while mine == outer._cut:
                    outer.number += 1
                    data = jpeg(outer.number % 250)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                    try:
                        self.wfile.write(head + data + b"\r\n")
                    except OSError:
                        return
                    time.sleep(pause)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/stream"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def cut(self) -> None:
        self._cut += 1

    def close(self) -> None:
        self.cut()
        self._server.shutdown()
        self._server.server_close()


def jpeg(gray: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), gray, np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


def write_video(path: Path, frames: int) -> Path:
    """A video whose frame n has the gray value 10 n."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * n, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
