"""Triggers: a part is in place, take the next image now. By HTTP or by a coil of a PLC over Modbus TCP."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from cdo_ad.errors import needs_extra
from cdo_ad.server.errors import LineError
from cdo_ad.server.line.frames import Frame, Source

__all__ = ["HttpTrigger", "ModbusTrigger", "Trigger", "Triggered", "Waiting"]

POLL_SECONDS = 0.02
LATE_SECONDS = 2.0


class Trigger(Protocol):
    """Something that says when."""

    def start(self, fire: threading.Event, stop: threading.Event) -> None:
        """Set `fire` at each trigger, from a thread of its own, until `stop` is set."""
        ...


class Waiting:
    """A trigger that other code fires: the server's own route."""

    def start(self, fire: threading.Event, stop: threading.Event) -> None:
        """See `Trigger.start`."""


class Triggered:
    """A live source of which only the first image after each trigger is taken."""

    live = True

    def __init__(self, source: Source, trigger: Trigger) -> None:
        """Join a source and a trigger; raises LineError for a source that is not live."""
        if not source.live:
            raise LineError("a trigger needs a camera or a stream: files are judged as they come")
        self._source, self._trigger = source, trigger
        self.fire = threading.Event()
        self._fired = 0

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`."""
        self._trigger.start(self.fire, stop)
        for frame in self._source.frames(stop):
            # frames go by until one is wanted; what arrived before the trigger is not it
            if self.fire.is_set():
                self.fire.clear()
                self._fired += 1
                yield frame

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()

    def status(self) -> dict[str, Any]:
        """See `Source.status`."""
        return {**self._source.status(), "triggered": self._fired}


class HttpTrigger:
    """POST to a port of this machine."""

    def __init__(self, host: str, port: int) -> None:
        """Listen there from `start` on."""
        self._address = host, port
        self.port = port

    def start(self, fire: threading.Event, stop: threading.Event) -> None:
        """See `Trigger.start`; raises LineError where the port is taken."""

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fire.set()
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        try:
            server = http.server.ThreadingHTTPServer(self._address, Answer)
        except OSError as error:
            raise LineError(f"{self._address[0]} port {self._address[1]} is taken: choose another") from error
        self.port = server.server_port

        def end() -> None:
            stop.wait()
            server.shutdown()
            server.server_close()

        threading.Thread(target=server.serve_forever, name="trigger", daemon=True).start()
        threading.Thread(target=end, name="trigger end", daemon=True).start()


class ModbusTrigger:
    """A coil of a PLC: its change from 0 to 1 is the trigger."""

    def __init__(self, host: str, port: int, coil: int, unit: int = 1) -> None:
        """Ask that coil, fifty times a second."""
        self._address, self._coil, self._unit = (host, port), coil, unit

    def start(self, fire: threading.Event, stop: threading.Event) -> None:
        """See `Trigger.start`."""
        with needs_extra("line", "a Modbus trigger"):
            from pymodbus.client import ModbusTcpClient
        host, port = self._address

        def poll() -> None:
            before = True  # a coil that is set already is no change
            client = ModbusTcpClient(host, port=port, timeout=LATE_SECONDS, retries=0)
            while not stop.is_set():
                now = self._read(client)
                if now and not before:
                    fire.set()
                before = before if now is None else now
                stop.wait(POLL_SECONDS if now is not None else 0.5)
            client.close()

        threading.Thread(target=poll, name="trigger", daemon=True).start()

    def _read(self, client: Any) -> bool | None:
        """The coil; None where the PLC cannot be asked."""
        try:
            if not client.connected and not client.connect():
                return None
            answer = client.read_coils(self._coil, count=1, device_id=self._unit)
        except Exception:  # the library's own errors and those of sockets; the next poll connects again
            client.close()
            return None
        return None if answer.isError() else bool(answer.bits[0])
