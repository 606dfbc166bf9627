"""From the text that names a sink to the sink; and the two plain ones: a file and a web address.

    jsonl:FILE                                 a JSON object a line
    https://... http://...                     a POST for each decision
    mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC   a message for each decision; mqtts:// with TLS
    modbus://HOST[:PORT]/?coil=0&register=0    the state of a PLC, see `modbus`
    opcua://ADDRESS:PORT                       a server of the last decision and counters, see `opcua`

`${NAME}` in a text is replaced by the variable of the environment, so that no password stands in a command.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from cdo_ad.files import writing
from cdo_ad.server.errors import LineError
from cdo_ad.server.line.delivery import Sink
from cdo_ad.server.line.outbox import Message

__all__ = ["JsonLines", "Webhook", "open_sink", "shown"]

WEBHOOK_SECONDS = 10.0


class JsonLines:
    """A file to which lines are added."""

    state = False

    def __init__(self, path: Path) -> None:
        """Add to a file; its folder is made."""
        self._path = path

    def open(self) -> None:
        """See `Sink.open`."""

    def send(self, message: Message) -> None:
        """See `Sink.send`."""
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(message, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """See `Sink.close`."""


class Webhook:
    """A web address that answers a POST with 2xx; the header `Idempotency-Key` tells a repeated message."""

    state = False

    def __init__(self, address: str) -> None:
        """POST to an address."""
        self._address = address

    def open(self) -> None:
        """See `Sink.open`."""

    def send(self, message: Message) -> None:
        """See `Sink.send`."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(message.get("uid", ""))}
        body = json.dumps(message).encode()
        request = urllib.request.Request(self._address, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS) as answer:
            answer.read(1024)

    def close(self) -> None:
        """See `Sink.close`."""


def open_sink(text: str) -> Sink:
    """The sink that a text names, see the top of this module; it connects at its first message.

    Raises:
        LineError: it names none. MissingExtraError: its protocol is not installed.
    """
    text = _with_environment(text)
    parts = urlsplit(text)
    try:
        if parts.scheme == "jsonl":
            return JsonLines(Path(text.removeprefix("jsonl:")))
        if parts.scheme in ("http", "https") and parts.hostname:
            return Webhook(text)
        if parts.scheme in ("mqtt", "mqtts") and parts.hostname and parts.path.strip("/"):
            from cdo_ad.server.line.mqtt import Mqtt

            names = (unquote(parts.username or "") or None, unquote(parts.password or "") or None)
            secure = parts.scheme == "mqtts"
            port = parts.port or (8883 if secure else 1883)
            return Mqtt(parts.hostname, port, parts.path.strip("/"), *names, secure=secure)
        if parts.scheme == "modbus" and parts.hostname:
            from cdo_ad.server.line.modbus import Modbus

            numbers = {name: int(values[0]) for name, values in parse_qs(parts.query).items()}
            return Modbus(parts.hostname, parts.port or 502, **numbers)
        if parts.scheme == "opcua" and parts.hostname:
            from cdo_ad.server.line.opcua import OpcUa

            return OpcUa(parts.hostname, parts.port or 4840)
    except (ValueError, TypeError) as error:
        raise LineError(f"{shown(text)!r} is no sink: {error}") from error
    raise LineError(
        f"{shown(text)!r} is no sink: write jsonl:FILE, https://..., mqtt://HOST/TOPIC, modbus://HOST or opcua://ADDRESS:PORT"
    )


def shown(text: str) -> str:
    """The text without what nobody should read: passwords and queries of addresses."""
    parts = urlsplit(text)
    if parts.scheme in ("http", "https"):
        parts = parts._replace(query="")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _with_environment(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise LineError(f"the variable {match[1]} is not set: export it before the start")
        return found

    return re.sub(r"\$\{(\w+)\}", value, text)
