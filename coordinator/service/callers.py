"""Who calls: certificate, registry, role and pace, asked again on every call."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import grpc

from coordinator.service.limits import Limits, Pace
from coordinator.service.pki import Peer, Role, read_peer
from coordinator.service.refusals import Refused
from coordinator.service.registry import Member, Registry
from privacy.enrolment import PROTOCOL


class Callers:
    """Admits calls of members.

    Args:
        registry: who is a member.
        limits: of a member.

    """

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry, self._pace = registry, Pace(limits.calls_per_s)

    async def admit(self, context: Any, *roles: Role) -> Member:
        """Return the member that calls.

        Raises:
            Refused: of another role, or too often.
            RegistryError, PkiError: no active member, or a certificate that has expired.

        """
        peer = self.peer(context)
        self._pace.count(peer.name)
        return await self.check(peer, *roles)

    async def check(self, peer: Peer, *roles: Role) -> Member:
        """Return the member again in a call that was admitted; raises as `admit`."""
        _check_expiry(peer)
        member = await asyncio.to_thread(self._registry.check, peer)
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
    """Refuse another version of the exchange than ours."""
    if found != PROTOCOL:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            "other-protocol",
            f"Expected version {PROTOCOL} of the exchange, got {found}. Install a version of "
            "Arion that speaks the coordinator's.",
        )


def _check_expiry(peer: Peer) -> None:
    if peer.expires < datetime.now(UTC):
        raise Refused(
            grpc.StatusCode.UNAUTHENTICATED,
            "bad-certificate",
            "Expected a certificate that has not expired, got one that has. Renew it.",
        )
