"""Who may connect: invitations, members that wait for approval, active and revoked ones."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Engine, Row, select
from sqlalchemy.exc import IntegrityError

from coordinator.service.database import INVITATIONS, MEMBERS, transaction
from coordinator.service.pki import ROLES, Authority, Peer, Role, read_csr
from privacy.enrolment import NAME, Invitation, join_payload
from privacy.identity import SignatureError, Signed, verify_signed

INVITATION_LIFE_S = 7 * 24 * 3600.0
_KEY_BYTES = 32


class RegistryError(ValueError):
    """An act that the registry refuses.

    Attributes:
        code: fixed code of the case; goes over the wire.

    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Member:
    """One row of the registry.

    Attributes:
        address: number by which Flower's grid knows the member.
        name, role, status: "pending", "active" or "revoked".
        identity_key: Ed25519, to be compared by fingerprint before anyone pins it.
        certificate: newest one, PEM; empty before approval.
        seen: when the member last opened its stream, seconds since 1970.

    """

    address: int
    name: str
    role: Role
    status: str
    identity_key: bytes
    certificate: bytes
    seen: float | None


class Registry:
    """The registry of one federation.

    Args:
        engine: its database.
        authority: signs the members' connection keys.
        federation: its identifier.
        clock: seconds since 1970.

    """

    def __init__(
        self,
        engine: Engine,
        authority: Authority,
        federation: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._authority = engine, authority
        self.federation, self._clock = federation, clock

    def invite(self, name: str, role: str = "node") -> Invitation:
        """Make an invitation, valid once and for seven days; a member may join again with one.

        Raises:
            RegistryError: a name that is not one, an unknown role.

        """
        if not NAME.fullmatch(name) or role not in ROLES:
            raise RegistryError(
                "bad-name",
                f"Expected a name of a-z, 0-9 and - and a role of {', '.join(ROLES)}, got "
                f"{name[:80]!r} as {role!r}. Choose others.",
            )
        invitation = Invitation.new(self._authority.pem)
        with transaction(self._engine) as connection:
            connection.execute(
                INVITATIONS.insert().values(
                    digest=invitation.digest,
                    name=name,
                    role=role,
                    expires=self._clock() + INVITATION_LIFE_S,
                )
            )
        return invitation

    def join(self, secret: bytes, csr: bytes, identity_key: bytes, signature: bytes) -> str:
        """Consume an invitation; the member waits for approval. The same request again is fine.

        Raises:
            RegistryError: an invitation that is unknown, used or expired; a signature that does
                not bind the connection key to the identity; a member's name with another identity;
                another member's connection key.
            PkiError: not a signing request.

        """
        read_csr(csr)
        digest = hashlib.sha256(secret).hexdigest()
        _check_binding(identity_key, digest, csr, signature)
        try:
            return self._join(digest, csr, identity_key)
        except IntegrityError as error:
            raise RegistryError(
                "request-known",
                "Expected a connection key that nobody joined with, got one that is known. Join "
                "from a new home.",
            ) from error

    def _join(self, digest: str, csr: bytes, identity_key: bytes) -> str:
        request = hashlib.sha256(csr).digest()
        with transaction(self._engine) as connection:
            row = connection.execute(
                select(INVITATIONS).where(INVITATIONS.c.digest == digest).with_for_update()
            ).one_or_none()
            if row is not None and row.used is not None:
                known = self._row(connection, row.name)
                if known is not None and known.csr_digest == request:
                    return str(row.name)
            if row is None or row.used is not None or row.expires < self._clock():
                raise RegistryError(
                    "bad-invitation",
                    "Expected an invitation that is valid and was not used, got another. Ask the "
                    "coordinator's operator for a new one.",
                )
            connection.execute(
                INVITATIONS.update()
                .where(INVITATIONS.c.digest == digest)
                .values(used=self._clock())
            )
            self._wait(connection, row, csr, identity_key)
        return str(row.name)

    def collect(self, csr_digest: bytes) -> Member:
        """Return the member that made a request; RegistryError where there is none."""
        with transaction(self._engine, only_reads=True) as connection:
            row = connection.execute(
                select(MEMBERS).where(MEMBERS.c.csr_digest == csr_digest)
            ).one_or_none()
        if row is None:
            raise RegistryError("unknown-request", "Expected a request made before, got another.")
        return _member(row)

    def approve(self, name: str) -> Member:
        """Sign a waiting member's connection key.

        Raises:
            RegistryError: nobody of that name waits.

        """
        with transaction(self._engine) as connection:
            row = self._row(connection, name)
            if row is None or row.status != "pending":
                raise RegistryError(
                    "not-pending",
                    f"Expected {name!r} to wait for approval, got "
                    f"{'nobody' if row is None else row.status}. See `arion node list`.",
                )
            certificate = self._issue(row.csr, row.name, row.role)
            self._update(connection, name, status="active", certificate=certificate)
            return _member(self._row(connection, name))

    def revoke(self, name: str) -> None:
        """Refuse a member from its next call on; RegistryError where there is none."""
        with transaction(self._engine) as connection:
            if self._row(connection, name) is None:
                raise RegistryError(
                    "unknown-member", f"Expected a member, got {name!r}. See `arion node list`."
                )
            self._update(connection, name, status="revoked")

    def renew(self, peer: Peer, csr: bytes) -> bytes:
        """Sign a new connection key of a member that is connected; return the certificate."""
        read_csr(csr)
        with transaction(self._engine) as connection:
            certificate = self._issue(csr, peer.name, peer.role)
            self._update(connection, peer.name, certificate=certificate)
        return certificate

    def check(self, peer: Peer) -> Member:
        """Return the member at the end of a connection, asked again on every call.

        Raises:
            RegistryError: revoked, or not a member.

        """
        with transaction(self._engine, only_reads=True) as connection:
            row = self._row(connection, peer.name)
        if row is None or row.status != "active" or row.role != peer.role:
            raise RegistryError(
                "revoked", f"Expected an active member, got {peer.name!r}. Ask the operator."
            )
        return _member(row)

    def note_seen(self, name: str) -> None:
        """Note that a member opened its stream."""
        with transaction(self._engine) as connection:
            self._update(connection, name, seen=self._clock())

    def members(self) -> list[Member]:
        """Return everyone, sorted by name."""
        with transaction(self._engine, only_reads=True) as connection:
            return [_member(row) for row in connection.execute(select(MEMBERS).order_by("name"))]

    def _wait(self, connection: Any, invited: Any, csr: bytes, identity_key: bytes) -> None:
        """Have a member wait for approval: a new one, or one that comes back with its identity."""
        known = self._row(connection, invited.name)
        if known is not None and known.identity_key != identity_key:
            raise RegistryError(
                "name-taken",
                f"Expected the identity key by which {invited.name!r} joined before, got another. "
                "Join from that node's home, or have the operator invite under another name.",
            )
        request = {"csr": csr, "csr_digest": hashlib.sha256(csr).digest(), "certificate": b""}
        if known is not None:
            self._update(connection, invited.name, status="pending", role=invited.role, **request)
            return
        new = {"name": invited.name, "role": invited.role, "identity_key": identity_key}
        connection.execute(MEMBERS.insert().values(status="pending", **new, **request))

    def _issue(self, csr: bytes, name: str, role: Role) -> bytes:
        certificate = self._authority.issue_member(csr, name, role, self.federation)
        return certificate.public_bytes(Encoding.PEM)

    @staticmethod
    def _row(connection: Any, name: str) -> Any:
        return connection.execute(select(MEMBERS).where(MEMBERS.c.name == name)).one_or_none()

    @staticmethod
    def _update(connection: Any, name: str, **values: object) -> None:
        connection.execute(MEMBERS.update().where(MEMBERS.c.name == name).values(**values))


def _check_binding(identity_key: bytes, digest: str, csr: bytes, signature: bytes) -> None:
    try:
        if len(identity_key) != _KEY_BYTES:
            raise SignatureError("Expected an identity key of 32 bytes.")
        verify_signed(identity_key, "join", Signed(join_payload(digest, csr), signature))
    except SignatureError as error:
        raise RegistryError(
            "bad-signature",
            "Expected the request and the invitation signed by the identity key, got another "
            "signature. Run `arion node join` again.",
        ) from error


def _member(row: Row[Any]) -> Member:
    return Member(
        row.address, row.name, row.role, row.status, row.identity_key, row.certificate, row.seen
    )
