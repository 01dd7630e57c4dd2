"""Runs the service: two ports, a server certificate that is renewed without a restart."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2_grpc as health_rpc

from coordinator import locks
from coordinator.errors import RunError
from coordinator.service import reflection
from coordinator.service.arrivals import Arrivals
from coordinator.service.artefacts import REGISTRY_FOLDER, Artefacts
from coordinator.service.audit import Audit
from coordinator.service.callers import Callers
from coordinator.service.enrolment import Enrolment, Identity
from coordinator.service.exchange import Exchange
from coordinator.service.health import Health
from coordinator.service.home import SERVICE_FILE, ServiceHome
from coordinator.service.metrics import Metrics
from coordinator.service.pki import SERVER_LIFE
from coordinator.service.watch import CallWatch
from protos.arion.v1 import service_pb2_grpc as rpc
from protos.wire import LARGEST_MESSAGE_BYTES

_LOG = logging.getLogger("arion.service")
_RENEW_AFTER_S = SERVER_LIFE.total_seconds() * 2 / 3
_GRACE_S = 2.0
_ENVELOPE_ROOM = 1 << 20
_LARGEST_ENROLMENT = 64 << 10
_NO_COMPRESSION = 1  # a bit set of algorithms: identity alone, so that nothing unfolds in memory
_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
    ("grpc.so_reuseport", 0),  # two services on one port would get every other connection
)
LOCK_FILE = "serve.lock"


@dataclass
class Ports:
    """Where the service listens, as the system gave it.

    Attributes:
        exchange, enrolment: under TLS.
        metrics: on the loopback address; None where none are served.

    """

    exchange: int
    enrolment: int
    metrics: int | None = None


class ServerCertificate:
    """The pair that new connections are served with; a new one after two thirds of its life."""

    def __init__(self, home: ServiceHome) -> None:
        self._home = home
        self._made = time.monotonic()
        self._pair = home.new_server_pair()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What gRPC starts with."""
        return grpc.ssl_server_certificate_configuration(
            [self._pair], root_certificates=self._home.authority.pem
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """A new pair where one is due, else None; gRPC asks on every new connection."""
        if time.monotonic() < self._made + _RENEW_AFTER_S:
            return None
        self._made, self._pair = time.monotonic(), self._home.new_server_pair()
        _LOG.info("the server certificate was renewed")
        return self.configuration()


class Service:
    """The running service of one home.

    Attributes:
        metrics: of its calls.
        health: of its database and its disk.

    """

    def __init__(self, home: ServiceHome) -> None:
        self._home = home
        self.metrics = Metrics(home.registry, home.mailbox)
        self.health = Health(home.mailbox, home.settings.limits, self.metrics)
        self._servers: list[grpc.aio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._open = ExitStack()

    async def start(self) -> Ports:
        """Listen on both ports; never without TLS.

        Raises:
            RunError: another process serves this home, or a port is taken.

        """
        home, settings = self._home, self._home.settings
        self._hold()
        swept = await asyncio.to_thread(home.mailbox.sweep)
        arrivals = Arrivals(home.mailbox)
        await self.health.look()
        callers = Callers(home.registry, settings.limits)
        streams = Exchange(callers, home.registry, home.mailbox, arrivals, settings.limits)
        exchange, enrolment = self._exchange(callers, streams), self._enrolment()
        self._servers = [exchange, enrolment]
        ports = Ports(
            self._bind(exchange, settings.port, members_only=True),
            self._bind(enrolment, settings.enrolment_port, members_only=False),
        )
        if settings.metrics_port is not None:
            with self._free("127.0.0.1", settings.metrics_port):
                ports.metrics = self._open.enter_context(self.metrics.serve(settings.metrics_port))
        for server in self._servers:
            await server.start()
        jobs = (arrivals.watch(), self.health.watch(), streams.watch_streams())
        self._tasks = [asyncio.create_task(job) for job in jobs]
        _LOG.info(
            "exchange on port %d, enrolment on port %d, metrics on %s; %d lost files were deleted",
            ports.exchange,
            ports.enrolment,
            ports.metrics or "no port",
            swept,
        )
        return ports

    async def stop(self) -> None:
        """Close both ports; calls under way get two seconds."""
        await asyncio.gather(*(server.stop(_GRACE_S) for server in self._servers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._open.close)

    async def wait(self) -> None:
        """Serve until stopped."""
        await asyncio.gather(*(server.wait_for_termination() for server in self._servers))

    def _hold(self) -> None:
        """Keep every other process from serving this home."""
        descriptor = locks.take(self._home.path / LOCK_FILE)
        if descriptor is None:
            raise RunError(
                f"Expected that nobody serves {self._home.path}, got another process that does. "
                "Stop it first; arion coordinator status tells whether it serves."
            )
        self._open.callback(os.close, descriptor)

    def _exchange(self, callers: Callers, streams: Exchange) -> grpc.aio.Server:
        home, limits = self._home, self._home.settings.limits
        server = _server(self.metrics, LARGEST_MESSAGE_BYTES + _ENVELOPE_ROOM)
        rpc.add_ExchangeServicer_to_server(streams, server)
        artefacts = Artefacts(
            callers, home.path / REGISTRY_FOLDER, home.settings.artefact_roles, limits
        )
        rpc.add_ArtefactsServicer_to_server(artefacts, server)
        rpc.add_AuditServicer_to_server(Audit(callers, home.path, limits), server)
        if home.settings.reflection:
            reflection.add_to_server(reflection.OperatorsReflection(callers), server)
        return server

    def _enrolment(self) -> grpc.aio.Server:
        home = self._home
        server = _server(self.metrics, _LARGEST_ENROLMENT)
        identity = Identity(home.settings.federation, home.key.public_key)
        rpc.add_EnrolmentServicer_to_server(
            Enrolment(home.registry, identity, home.settings.limits), server
        )
        health_rpc.add_HealthServicer_to_server(self.health, server)
        return server

    def _bind(self, server: grpc.aio.Server, port: int, *, members_only: bool) -> int:
        certificate = ServerCertificate(self._home)
        credentials = grpc.dynamic_ssl_server_credentials(
            certificate.configuration(),
            certificate.renewed,
            require_client_authentication=members_only,
        )
        listen = self._home.settings.listen
        with self._free(listen, port):
            return int(server.add_secure_port(f"{listen}:{port}", credentials))

    @contextmanager
    def _free(self, listen: str, port: int) -> Iterator[None]:
        """Say what to do where a port cannot be had."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            raise RunError(
                f"Expected a port that is free on {listen}, got {port}, which another process has, "
                "or which this user may not use. Stop that process, or change the port in "
                f"{self._home.path / SERVICE_FILE}."
            ) from error


def _server(metrics: Metrics, largest: int) -> grpc.aio.Server:
    sizes = (
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES + _ENVELOPE_ROOM),
    )
    return grpc.aio.server(interceptors=(CallWatch(metrics),), options=(*_OPTIONS, *sizes))
