"""Who may connect: invitations, members that wait for approval, active and revoked ones."""

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from coordinator.service.approvals import Approval, ApprovalError, is_founded, note_approval
from coordinator.service.bindings import RegistryError, check_join, check_renewal
from coordinator.service.database import INVITATIONS, MEMBERS, transaction
from coordinator.service.invitations import open_invitations, withdraw
from coordinator.service.members import (
    LATELY_S,
    Member,
    find_row,
    known_row,
    to_member,
    update_row,
    waiting_row,
)
from coordinator.service.pki import ROLES, Authority, Peer, Role, read_csr
from coordinator.shared import LEDGER_NAME
from privacy.enrolment import NAME, Invitation

INVITATION_LIFE_S = 7 * 24 * 3600.0


class Registry:
    """The registry of one federation.

    Args:
        engine: its database.
        authority: signs the members' connection keys.
        federation: its identifier.
        approvals: operators that must approve a member, 1 or 2.
        clock: seconds since 1970.

    """

    def __init__(
        self,
        engine: Engine,
        authority: Authority,
        federation: str,
        approvals: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._authority = engine, authority
        self.federation, self._approvals, self._clock = federation, approvals, clock

    def invite(self, name: str, role: str = "node") -> Invitation:
        """Make an invitation, valid once and for seven days; a member may join again with one.

        Raises:
            RegistryError: a name that is not one, an unknown role.

        """
        if not NAME.fullmatch(name) or name == LEDGER_NAME or role not in ROLES:
            raise RegistryError(
                "bad-name",
                f"Expected a name of a-z, 0-9 and -, not {LEDGER_NAME!r}, and a role of "
                f"{', '.join(ROLES)}, got {name[:80]!r} as {role!r}. Choose others.",
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

    def join(
        self,
        secret: bytes,
        csr: bytes,
        identity_key: bytes,
        signature: bytes,
    ) -> str:
        """Consume an invitation; the member waits for approval. The same request again is fine.

        Args:
            secret: of the invitation.
            csr: signing request of the connection key.
            identity_key: by which the member is known from now on.
            signature: by it, over the invitation's digest and the request's.

        Raises:
            RegistryError: an invitation that is unknown, used or expired; a signature that does
                not bind the connection key to the identity; a member's name with another identity;
                another member's connection key.
            PkiError: not a signing request.

        """
        read_csr(csr)
        digest = hashlib.sha256(secret).hexdigest()
        check_join(identity_key, digest, csr, signature)
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
                known = find_row(connection, row.name)
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
        return to_member(row)

    def waiting(self, name: str) -> Any:
        """Return the row of a member that waits for approval; RegistryError where nobody does."""
        with transaction(self._engine, only_reads=True) as connection:
            return waiting_row(connection, name)

    def approve(self, name: str, approval: Approval | None = None) -> Member:
        """Sign a waiting member's connection key once all approvals are there.

        Args:
            name: of who waits.
            approval: an operator's, where the service asks for two.

        Returns:
            The member: active, or pending where another operator must approve it too.

        Raises:
            RegistryError: nobody of that name waits.
            ApprovalError: the approval does not count.

        """
        with transaction(self._engine) as connection:
            row = waiting_row(connection, name)
            if approval is not None and self._approvals == 1:
                raise ApprovalError(
                    "Expected no operator's signature, got one: this coordinator asks for one "
                    "approval, which is given at its machine. Leave out --operator, or make a "
                    "coordinator with --approvals 2."
                )
            missing = 0
            if self._approvals > 1:
                now = self._clock()
                missing = note_approval(connection, self.federation, row, approval, now)
            if not missing:
                certificate = self._issue(row.csr, row.name, row.role, row.certificates_from)
                update_row(connection, name, status="active", certificate=certificate)
            return to_member(find_row(connection, name))

    def revoke(self, name: str) -> int:
        """Refuse a member from its next call on, and withdraw the open invitations of its name.

        Returns:
            How many invitations were withdrawn.

        Raises:
            RegistryError: neither a member nor an open invitation has that name.

        """
        with transaction(self._engine) as connection:
            is_founded(connection, self._clock())
            withdrawn = withdraw(connection, name)
            if not withdrawn or find_row(connection, name) is not None:
                known_row(connection, name)
                update_row(connection, name, status="revoked")
        return withdrawn

    def invitations(self) -> list[tuple[str, str, float]]:
        """Return the open invitations as (name, role, when it expires), sorted."""
        with transaction(self._engine, only_reads=True) as connection:
            return open_invitations(connection, self._clock())

    def rotate(self, name: str) -> None:
        """Refuse a member's certificates of before now until it has renewed.

        Raises:
            RegistryError: there is none, or it is not active and has nothing to renew.

        """
        with transaction(self._engine) as connection:
            row = known_row(connection, name)
            if row.status != "active":
                raise RegistryError(
                    "not-active", f"Expected an active member, got {name!r}, which is {row.status}."
                )
            # Certificates count whole seconds: from the next one on they are new.
            update_row(connection, name, certificates_from=float(int(self._clock()) + 1))

    def renew(self, peer: Peer, csr: bytes, signature: bytes) -> bytes:
        """Sign a new connection key of a member that is connected; return the certificate.

        Args:
            peer: who is connected.
            csr: signing request of the new key.
            signature: by the identity key.

        Raises:
            RegistryError: another signature, or none.
            PkiError: not a signing request.

        """
        read_csr(csr)
        with transaction(self._engine) as connection:
            row = known_row(connection, peer.name)
            check_renewal(row, csr, signature)
            certificate = self._issue(csr, peer.name, peer.role, row.certificates_from)
            update_row(connection, peer.name, certificate=certificate)
        return certificate

    def check(self, peer: Peer, *, may_be_rotated: bool = False) -> Member:
        """Return the member at the end of a connection, asked again on every call.

        Args:
            peer: as the certificate says.
            may_be_rotated: accept a certificate that must be renewed, to renew it.

        Raises:
            RegistryError: revoked, not a member, or told to renew.

        """
        with transaction(self._engine, only_reads=True) as connection:
            row = find_row(connection, peer.name)
        if row is None or row.status != "active" or row.role != peer.role:
            status = "unknown here" if row is None else row.status
            raise RegistryError(
                "revoked",
                f"Expected an active member, got {peer.name!r}, which is {status}. Ask the "
                "operator for a new invitation, if it shall take part again.",
            )
        is_old = peer.issued.timestamp() < (row.certificates_from or 0.0)
        if is_old and not may_be_rotated:
            raise RegistryError(
                "rotate", "Expected a certificate of after the operator's demand. Renew it."
            )
        return to_member(row)

    def note_seen(self, *names: str) -> None:
        """Note that members listen."""
        with transaction(self._engine) as connection:
            for name in names:
                update_row(connection, name, seen=self._clock())

    def members(self) -> list[Member]:
        """Return everyone, sorted by name."""
        with transaction(self._engine, only_reads=True) as connection:
            return [to_member(row) for row in connection.execute(select(MEMBERS).order_by("name"))]

    def nodes(self) -> list[Member]:
        """Return the institutions that may take part in a run, sorted by name."""
        return [m for m in self.members() if m.status == "active" and m.role == "node"]

    def nodes_present(self) -> list[Member]:
        """Return those of `nodes` that listen, or did lately."""
        now = self._clock()  # which may have been set back since
        return [m for m in self.nodes() if abs(now - (m.seen or 0.0)) < LATELY_S]

    def _wait(self, connection: Any, invited: Any, csr: bytes, identity_key: bytes) -> None:
        """Have a member wait for approval: a new one, or one that comes back with its identity."""
        known = find_row(connection, invited.name)
        if known is not None and known.identity_key != identity_key:
            raise RegistryError(
                "name-taken",
                f"Expected the identity key by which {invited.name!r} joined before, got another. "
                "Join from that node's home, or have the operator invite under another name.",
            )
        if known is not None and known.role != invited.role:
            raise RegistryError(
                "name-taken",
                f"Expected the role in which {invited.name!r} joined before, {known.role}, got "
                f"{invited.role}. Have the operator invite under another name.",
            )
        request = {"csr": csr, "csr_digest": hashlib.sha256(csr).digest()}
        if known is not None:
            # its last certificate tells that it was approved before, and not revoked since
            last = b"" if known.status == "revoked" else known.certificate
            update_row(connection, invited.name, status="pending", certificate=last, **request)
            return
        new = {"name": invited.name, "role": invited.role, "identity_key": identity_key}
        connection.execute(
            MEMBERS.insert().values(status="pending", certificate=b"", **new, **request)
        )

    def _issue(self, csr: bytes, name: str, role: Role, earliest: float | None = None) -> bytes:
        issued = datetime.fromtimestamp(max(time.time(), earliest or 0.0), UTC)
        certificate = self._authority.issue_member(csr, name, role, self.federation, issued=issued)
        return certificate.public_bytes(Encoding.PEM)
