"""Runs the service: two ports, a server certificate that is renewed without a restart."""

import asyncio
import logging
import time
from dataclasses import dataclass

import grpc

from coordinator.service.home import ServiceHome
from coordinator.service.pki import SERVER_LIFE
from coordinator.service.server import OPTIONS, Enrolment, Exchange, Identity
from protos.arion.v1 import service_pb2_grpc as rpc

_LOG = logging.getLogger("arion.service")
_RENEW_AFTER_S = SERVER_LIFE.total_seconds() * 2 / 3
_GRACE_S = 2.0


@dataclass
class Ports:
    """Where the service listens, as the system gave it."""

    exchange: int
    enrolment: int


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
    """The running service of one home."""

    def __init__(self, home: ServiceHome) -> None:
        self._home = home
        self._servers: list[grpc.aio.Server] = []

    async def start(self) -> Ports:
        """Listen on both ports; never without TLS."""
        settings = self._home.settings
        identity = Identity(settings.federation, self._home.key.public_key)
        exchange, enrolment = grpc.aio.server(options=OPTIONS), grpc.aio.server(options=OPTIONS)
        rpc.add_ExchangeServicer_to_server(
            Exchange(self._home.registry, self._home.mailbox), exchange
        )
        rpc.add_EnrolmentServicer_to_server(Enrolment(self._home.registry, identity), enrolment)
        ports = Ports(
            self._bind(exchange, settings.port, members_only=True),
            self._bind(enrolment, settings.enrolment_port, members_only=False),
        )
        self._servers = [exchange, enrolment]
        for server in self._servers:
            await server.start()
        _LOG.info("exchange on port %d, enrolment on port %d", ports.exchange, ports.enrolment)
        return ports

    async def stop(self) -> None:
        """Close both ports; calls under way get two seconds."""
        await asyncio.gather(*(server.stop(_GRACE_S) for server in self._servers))

    async def wait(self) -> None:
        """Serve until stopped."""
        await asyncio.gather(*(server.wait_for_termination() for server in self._servers))

    def _bind(self, server: grpc.aio.Server, port: int, *, members_only: bool) -> int:
        certificate = ServerCertificate(self._home)
        credentials = grpc.dynamic_ssl_server_credentials(
            certificate.configuration(),
            certificate.renewed,
            require_client_authentication=members_only,
        )
        return int(server.add_secure_port(f"{self._home.settings.listen}:{port}", credentials))
