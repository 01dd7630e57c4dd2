"""Members as rows of the database, and as what the service makes of them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from coordinator.service.bindings import RegistryError
from coordinator.service.database import MEMBERS, only_reads
from coordinator.service.pki import Role

SEEN_EVERY_S = 15.0
"""How often it is noted that members listen."""
LATELY_S = 4 * SEEN_EVERY_S
"""Who did not listen for so long is away."""


@dataclass(frozen=True)
class Member:
    """One row of the registry.

    Attributes:
        address: number by which Flower's grid knows the member.
        name, role, status: "pending", "active" or "revoked".
        identity_key: Ed25519, to be compared by fingerprint before anyone pins it.
        certificate: newest one, PEM; empty before approval.
        seen: when the member last listened, seconds since 1970; `SEEN_EVERY_S` apart.

    """

    address: int
    name: str
    role: Role
    status: str
    identity_key: bytes
    certificate: bytes
    seen: float | None


def find_row(connection: Connection, name: str) -> Any:
    """Return a member's row, or None; a transaction that may change it holds it from here on.

    Else PostgreSQL would let an approval that read "pending" overwrite a revocation after it.
    """
    query = select(MEMBERS).where(MEMBERS.c.name == name)
    if not only_reads(connection):
        query = query.with_for_update()
    return connection.execute(query).one_or_none()


def known_row(connection: Connection, name: str) -> Any:
    """Return a member's row; RegistryError where there is none."""
    row = find_row(connection, name)
    if row is None:
        raise RegistryError(
            "unknown-member", f"Expected a member, got {name!r}. See `arion node list`."
        )
    return row


def waiting_row(connection: Connection, name: str) -> Any:
    """Return the row of a member that waits for approval; RegistryError where nobody does."""
    row = find_row(connection, name)
    if row is None or row.status != "pending":
        raise RegistryError(
            "not-pending",
            f"Expected {name!r} to wait for approval, got "
            f"{'nobody' if row is None else row.status}. See `arion node list`.",
        )
    return row


def update_row(connection: Connection, name: str, **values: object) -> None:
    """Change a member's row."""
    connection.execute(MEMBERS.update().where(MEMBERS.c.name == name).values(**values))


def to_member(row: Any) -> Member:
    """Return what a row says."""
    return Member(
        row.address, row.name, row.role, row.status, row.identity_key, row.certificate, row.seen
    )
