"""What Prometheus reads: latency by stage, queue, decisions, p-values, drift, sinks."""

from __future__ import annotations

from cdo_ad.errors import needs_extra

with needs_extra("server", "the server"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.gc_collector import GCCollector
    from prometheus_client.platform_collector import PlatformCollector
    from prometheus_client.process_collector import ProcessCollector

__all__ = ["Metrics"]

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
P_VALUES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        """All start at nothing."""
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self.seconds = Histogram(
            "cdo_ad_seconds", "Time of an inspection by stage: decode, model, finish, record, total", ["stage"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.inspections = Counter(
            "cdo_ad_inspections", "Inspections acknowledged", ["product", "version", "decision"], registry=registry
        )
        self.p_values = Histogram(
            "cdo_ad_p_value",
            "p-values; of good images they are uniform",
            ["product"],
            buckets=P_VALUES,
            registry=registry,
        )
        self.in_flight = Gauge("cdo_ad_in_flight", "Images admitted and not yet answered", registry=registry)
        self.waiting = Gauge("cdo_ad_queue", "Images that wait for the model", registry=registry)
        self.batch = Histogram(
            "cdo_ad_batch_size", "Images judged together", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.refused = Counter("cdo_ad_refused", "Requests refused", ["reason"], registry=registry)
        self.drift = Gauge(
            "cdo_ad_drift_log10", "Evidence for drift, decimal logarithm", ["product"], registry=registry
        )
        self.drifted = Gauge("cdo_ad_drifted", "1 once the stream has drifted", ["product"], registry=registry)
        self.shadow = Counter(
            "cdo_ad_shadow", "Images judged by a shadow version", ["product", "version", "agreement"], registry=registry
        )
        self.source_frames = Counter(
            "cdo_ad_source_frames", "Images of sources", ["source", "outcome"], registry=registry
        )
        self.source_latency = Histogram(
            "cdo_ad_source_seconds", "From an image's arrival at its source to the decision", ["source"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.sink = Counter("cdo_ad_sink", "Messages of sinks", ["sink", "outcome"], registry=registry)
        self.sink_waiting = Gauge("cdo_ad_sink_waiting", "Messages in a sink's outbox", ["sink"], registry=registry)

    def text(self) -> bytes:
        """All values in Prometheus' text format."""
        return generate_latest(self.registry)
