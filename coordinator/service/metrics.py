"""Prometheus metrics of a service: counts and sizes, without a name, an address or a digest.

They are served without a password, so on the loopback address only.
"""

from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily

from coordinator.service.mailbox import Mailbox
from coordinator.service.registry import Registry

LOOPBACK = "127.0.0.1"
_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)
_STREAMS = {"Listen", "Watch", "ServerReflectionInfo"}


class Metrics:
    """Metrics of one service.

    Args:
        registry, mailbox: asked when the metrics are read.

    """

    def __init__(self, registry: Registry, mailbox: Mailbox) -> None:
        self.collected = CollectorRegistry()
        self._calls = Counter(
            "arion_calls", "Calls that ended.", ("method", "outcome"), registry=self.collected
        )
        self._seconds = Histogram(
            "arion_call_seconds",
            "Seconds of calls that are not streams.",
            ("method",),
            buckets=_SECONDS,
            registry=self.collected,
        )
        self.streams = Gauge("arion_open_streams", "Open streams.", registry=self.collected)
        self.serving = Gauge(
            "arion_serving", "1 while database and disk do their work.", registry=self.collected
        )
        self.collected.register(_State(registry, mailbox))

    def count_call(self, method: str, outcome: str, seconds: float) -> None:
        """Count a call that ended.

        Args:
            method: of the service's own.
            outcome: "ok", "cancelled" or the fixed code of a refusal.
            seconds: it took.

        """
        self._calls.labels(method, outcome).inc()
        if method not in _STREAMS:
            self._seconds.labels(method).observe(seconds)

    @contextmanager
    def serve(self, port: int) -> Iterator[int]:
        """Serve over HTTP on the loopback address; yield the port."""
        server, thread = start_http_server(port, addr=LOOPBACK, registry=self.collected)
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _State:
    """What is counted when somebody reads the metrics."""

    def __init__(self, registry: Registry, mailbox: Mailbox) -> None:
        self._registry, self._mailbox = registry, mailbox

    def collect(self) -> Iterator[Any]:
        """Yield the families; a database that is away leaves its own out."""
        try:
            members = Counts((m.role, m.status) for m in self._registry.members())
            waiting = sum(count for count, _ in self._mailbox.newest().values())
        except OSError:
            members, waiting = Counts(), None
        family = GaugeMetricFamily("arion_members", "Members.", labels=("role", "status"))
        for labels, count in sorted(members.items()):
            family.add_metric(labels, count)
        yield family
        if waiting is not None:
            yield GaugeMetricFamily("arion_messages_waiting", "Unanswered messages.", waiting)
        blobs = self._mailbox.blobs
        yield GaugeMetricFamily("arion_payload_bytes", "Payloads kept.", blobs.kept_bytes())
        yield GaugeMetricFamily("arion_disk_free_bytes", "Free on the disk.", blobs.free_bytes())
