"""Who calls: certificate, registry, role and pace, asked again on every call."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import grpc

from coordinator.service.limits import Limits, Pace
from coordinator.service.members import Member
from coordinator.service.pki import Peer, Role, read_peer
from coordinator.service.refusals import Refused
from coordinator.service.registry import Registry
from privacy.enrolment import OLDEST_PROTOCOL, PROTOCOL


class Callers:
    """Admits calls of members.

    Args:
        registry: who is a member.
        limits: of a member.

    """

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry, self._pace = registry, Pace(limits.calls_per_s)

    async def admit(self, context: Any, *roles: Role, may_be_rotated: bool = False) -> Member:
        """Return the member that calls.

        Args:
            context: of the call.
            roles: that may make it.
            may_be_rotated: as `Registry.check`.

        Raises:
            Refused: of another role, or too often.
            RegistryError, PkiError: no active member, or a certificate that has expired.

        """
        peer = self.peer(context)
        self._pace.count(peer.name)
        return await self.check(peer, *roles, may_be_rotated=may_be_rotated)

    async def check(self, peer: Peer, *roles: Role, may_be_rotated: bool = False) -> Member:
        """Return the member again in a call that was admitted; raises as `admit`."""
        _check_expiry(peer)
        member = await asyncio.to_thread(self._registry.check, peer, may_be_rotated=may_be_rotated)
        if member.role not in roles:
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED,
                "wrong-role",
                f"Expected {' or '.join(roles)}, got the {member.role} {member.name!r}.",
            )
        return member

    def peer(self, context: Any) -> Peer:
        """Return name and role that the certificate says; PkiError where it has expired."""
        pem = context.auth_context()["x509_pem_cert"][0]
        return read_peer(pem, self._registry.federation, datetime.now(UTC))


def check_protocol(found: int) -> None:
    """Refuse a version of the exchange that is neither ours nor the one before."""
    if not OLDEST_PROTOCOL <= found <= PROTOCOL:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            "other-protocol",
            f"Expected version {OLDEST_PROTOCOL} to {PROTOCOL} of the exchange, got {found}. "
            "Install a version of Arion that speaks the coordinator's.",
        )


def _check_expiry(peer: Peer) -> None:
    if peer.expires < datetime.now(UTC):
        raise Refused(
            grpc.StatusCode.UNAUTHENTICATED,
            "bad-certificate",
            "Expected a certificate that has not expired, got one that has. Renew it.",
        )
