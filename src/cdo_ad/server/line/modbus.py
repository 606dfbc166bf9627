"""Modbus TCP: the last decision in the coils and registers of a PLC.

coil                    1 to reject the part
register                a counter modulo 65536; it changes last, so that a change says: all the rest is new
register + 1            the p-value, in ten-thousandths
register + 2, + 3       the image score, float32, high word first
"""

from __future__ import annotations

import struct
from typing import Any

from cdo_ad.errors import needs_extra
from cdo_ad.server.line.outbox import Message

with needs_extra("line", "writing to Modbus"):
    from pymodbus.client import ModbusTcpClient

__all__ = ["Modbus", "registers_of"]

SECONDS = 2.0


class Modbus:
    """A PLC that is written to."""

    state = True

    def __init__(self, host: str, port: int, *, coil: int = 0, register: int = 0, unit: int = 1) -> None:
        """Write to these addresses of a unit."""
        self._client: Any = ModbusTcpClient(host, port=port, timeout=SECONDS, retries=1)
        self._coil, self._register, self._unit = coil, register, unit
        self._count = 0

    def open(self) -> None:
        """See `Sink.open`."""

    def send(self, message: Message) -> None:
        """See `Sink.send`."""
        if not self._client.connected and not self._client.connect():
            raise ConnectionError("the PLC does not answer")
        self._count = (self._count + 1) % 65536
        values = registers_of(message)
        self._check(self._client.write_registers(self._register + 1, values, device_id=self._unit))
        self._check(self._client.write_coil(self._coil, bool(message["anomalous"]), device_id=self._unit))
        self._check(self._client.write_registers(self._register, [self._count], device_id=self._unit))

    def close(self) -> None:
        """See `Sink.close`."""
        self._client.close()

    def _check(self, answer: Any) -> None:
        if answer.isError():
            raise ConnectionError(f"the PLC refused: {answer}")


def registers_of(message: Message) -> list[int]:
    """The p-value and the two words of the score."""
    high, low = struct.unpack(">HH", struct.pack(">f", message["score"]))
    return [round(message["p_value"] * 10_000), high, low]
