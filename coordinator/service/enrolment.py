"""The port of joining, under server TLS: an invitation in, a certificate out after approval."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import grpc

from coordinator.service.callers import check_protocol
from coordinator.service.limits import Limits, Pace
from coordinator.service.refusals import Refused
from coordinator.service.registry import Registry
from privacy.enrolment import (
    OLDEST_PROTOCOL,
    PROTOCOL,
    EnrolmentError,
    Invitation,
)
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc

_LOG = logging.getLogger("arion.service")


@dataclass(frozen=True)
class Identity:
    """What the service says of itself.

    Attributes:
        federation: identifier.
        coordinator_key: Ed25519 key that signs plans; members compare its fingerprint.

    """

    federation: str
    coordinator_key: bytes


class Enrolment(rpc.EnrolmentServicer):
    """Joining, without a client certificate."""

    def __init__(self, registry: Registry, identity: Identity, limits: Limits) -> None:
        self._registry, self._identity = registry, identity
        self._pace = Pace(limits.joins_per_s)

    async def Hello(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say which versions are spoken here, and what time it is."""
        self._pace.count(_address(context))
        return pb.HelloReply(newest=PROTOCOL, oldest=OLDEST_PROTOCOL, time=time.time())

    async def Join(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Consume an invitation."""
        self._pace.count(_address(context))
        check_protocol(request.protocol)
        try:
            secret = Invitation.parse(request.token).secret
        except EnrolmentError as error:
            status = grpc.StatusCode.PERMISSION_DENIED
            raise Refused(status, "bad-invitation", str(error)) from error
        name = await asyncio.to_thread(
            self._registry.join,
            secret,
            request.csr,
            request.identity_key,
            request.signature,
        )
        _LOG.info("%s has joined and waits for approval", name)
        return pb.JoinReply(name=name)

    async def Collect(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the certificate once it was approved."""
        self._pace.count(_address(context))
        member = await asyncio.to_thread(self._registry.collect, request.csr_digest)
        return pb.CollectReply(
            status=member.status,
            certificate=member.certificate if member.status == "active" else b"",
            federation=self._identity.federation,
            coordinator_key=self._identity.coordinator_key,
        )


def _address(context: Any) -> str:
    """The caller's address without its port."""
    return str(context.peer()).rpartition(":")[0]
