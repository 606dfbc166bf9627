"""OPC UA: a server whose variables hold the last decision and counters, for whoever reads or subscribes."""

from __future__ import annotations

from typing import Any

from cdo_ad.errors import needs_extra
from cdo_ad.server.line.background import LoopThread
from cdo_ad.server.line.outbox import Message

with needs_extra("line", "an OPC UA server"):
    from asyncua import Server, ua

__all__ = ["NAMESPACE", "OpcUa"]

NAMESPACE = "urn:cdo-ad:inspection"
SECONDS = 20.0
VARIABLES: dict[str, tuple[Any, ua.VariantType]] = {
    "Anomalous": (False, ua.VariantType.Boolean),
    "Score": (0.0, ua.VariantType.Double),
    "PValue": (1.0, ua.VariantType.Double),
    "Threshold": (0.0, ua.VariantType.Double),
    "Sentence": ("", ua.VariantType.String),
    "Product": ("", ua.VariantType.String),
    "Uid": ("", ua.VariantType.String),
    "Inspected": (0, ua.VariantType.UInt32),
    "Rejected": (0, ua.VariantType.UInt32),
}
"""Below `Objects/Inspection`. `Inspected` is written last; the counters are of decisions shown here since the start."""
_FIELDS = {
    "Anomalous": "anomalous", "Score": "score", "PValue": "p_value", "Threshold": "threshold", "Sentence": "sentence",
    "Product": "product", "Uid": "uid",
}  # fmt: skip


class OpcUa:
    """Listens from `open` on."""

    state = True

    def __init__(self, host: str, port: int) -> None:
        """Listen on an address."""
        self._endpoint = f"opc.tcp://{host}:{port}/cdo-ad"
        self._thread: LoopThread | None = None
        self._server: Any = None
        self._nodes: dict[str, Any] = {}
        self._counts = {"Inspected": 0, "Rejected": 0}

    def open(self) -> None:
        """See `Sink.open`."""
        if self._thread is None:
            self._thread = LoopThread("opcua")
            try:
                self._thread.call(self._start(), SECONDS)
            except BaseException:
                self._thread.close()
                self._thread = None
                raise

    def send(self, message: Message) -> None:
        """See `Sink.send`."""
        self.open()
        assert self._thread is not None
        self._thread.call(self._write(message), SECONDS)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._thread is not None:
            try:
                self._thread.call(self._server.stop(), SECONDS)
            finally:
                self._thread.close()
                self._thread = None

    async def _start(self) -> None:
        self._server = Server()
        await self._server.init()
        self._server.set_endpoint(self._endpoint)
        self._server.set_server_name("cdo-ad inspection")
        self._server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        space = await self._server.register_namespace(NAMESPACE)
        folder = await self._server.nodes.objects.add_object(space, "Inspection")
        self._nodes = {
            name: await folder.add_variable(ua.NodeId(name, space), name, value, varianttype=kind)
            for name, (value, kind) in VARIABLES.items()
        }
        await self._server.start()

    async def _write(self, message: Message) -> None:
        values = {name: message[field] for name, field in _FIELDS.items()}
        self._counts["Inspected"] += 1
        self._counts["Rejected"] += bool(message["anomalous"])
        for name in (*values, "Rejected", "Inspected"):
            value = values.get(name, self._counts.get(name))
            await self._nodes[name].write_value(value, VARIABLES[name][1])
