"""Invitations that nobody used yet: kept by the digest of their secret, shown and withdrawn."""

from sqlalchemy import Connection, select, true

from coordinator.service.database import INVITATIONS

_UNUSED = INVITATIONS.c.used.is_(None)


def open_invitations(connection: Connection, now: float) -> list[tuple[str, str, float]]:
    """Return those that have not expired as (name, role, when it expires), sorted."""
    columns = (INVITATIONS.c.name, INVITATIONS.c.role, INVITATIONS.c.expires)
    query = select(*columns).where(_UNUSED, INVITATIONS.c.expires > now)
    return sorted(tuple(row) for row in connection.execute(query))


def withdraw(connection: Connection, name: str | None = None) -> int:
    """Delete those of a name, or all; return how many."""
    of_name = true() if name is None else INVITATIONS.c.name == name
    return int(connection.execute(INVITATIONS.delete().where(_UNUSED, of_name)).rowcount)
