"""MQTT: a JSON message for each decision, with quality of service 1: at least once."""

from __future__ import annotations

import contextlib
import json
import ssl
from typing import Any

from cdo_ad.errors import needs_extra
from cdo_ad.server.line.background import LoopThread
from cdo_ad.server.line.outbox import Message

with needs_extra("line", "sending to MQTT"):
    import aiomqtt

__all__ = ["Mqtt"]

SECONDS = 10.0


class Mqtt:
    """A topic of a broker."""

    state = False

    def __init__(
        self, host: str, port: int, topic: str, user: str | None = None, password: str | None = None, *,
        secure: bool = False,
    ) -> None:  # fmt: skip
        """Publish to `topic`; `secure` for TLS with the system's certificates."""
        self._topic = topic
        self._options: dict[str, Any] = {"hostname": host, "port": port, "username": user, "password": password}
        if secure:
            self._options["tls_context"] = ssl.create_default_context()
        self._thread: LoopThread | None = None
        self._client: aiomqtt.Client | None = None

    def open(self) -> None:
        """See `Sink.open`."""

    def send(self, message: Message) -> None:
        """See `Sink.send`."""
        if self._thread is None:
            self._thread = LoopThread("mqtt")
        self._thread.call(self._publish(json.dumps(message)), SECONDS)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._thread is not None:
            try:
                self._thread.call(self._disconnect(), SECONDS)
            finally:
                self._thread.close()
                self._thread = None

    async def _publish(self, text: str) -> None:
        if self._client is None:
            client = aiomqtt.Client(**self._options)
            await client.__aenter__()
            self._client = client
        await self._client.publish(self._topic, text, qos=1, timeout=SECONDS)

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(aiomqtt.MqttError):  # it was lost already
                await client.__aexit__(None, None, None)
