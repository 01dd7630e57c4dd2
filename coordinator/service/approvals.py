"""Approval of a member by two operators: each signs with the identity key of a home of its own.

Whoever can write the coordinator's database needs no approval; what two signatures stop is one
operator who uses the tools alone, and they stay as evidence of who let a member in.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from coordinator.service.database import APPROVALS, MEMBERS
from privacy.canonical import canonical_bytes
from privacy.identity import IdentityKey, SignatureError, Signed, verify_signed

_DOMAIN = "approve"
OPERATOR = "operator"
_TWO_OPERATORS = b"two operators"  # stands for a request's digest in a row that marks them


class ApprovalError(ValueError):
    """An approval that does not count."""


@dataclass(frozen=True)
class Approval:
    """One operator's approval of one request to join.

    Attributes:
        operator: the operator's name as a member.
        signature: by the operator's identity key, over `approval_payload`.

    """

    operator: str
    signature: bytes


def sign_approval(key: IdentityKey, operator: str, federation: str, waiting: Any) -> Approval:
    """Approve a waiting member (a row or a `Member` with its request) as an operator."""
    return Approval(operator, key.sign(_DOMAIN, approval_payload(federation, waiting)).signature)


def approval_payload(federation: str, waiting: Any) -> bytes:
    """Return what an operator signs: name, role, identity and request of who waits."""
    return canonical_bytes(
        {
            "version": 1,
            "federation": federation,
            "member": waiting.name,
            "role": waiting.role,
            "identity_key": waiting.identity_key.hex(),
            "request": hashlib.sha256(waiting.csr).hexdigest(),
        }
    )


def note_approval(
    connection: Connection, federation: str, waiting: Any, approval: Approval | None, now: float
) -> int:
    """Keep an operator's approval of who waits; return how many are still missing.

    The first two operators are approved without signatures, as there is nobody yet who could give
    them; nobody else is before there are two, and nobody ever after, whatever became of them: else
    one could revoke the other and let in a third alone. An operator that was approved before, was
    not revoked and comes back with the same identity needs as many of the others as there are.

    Args:
        connection: of a transaction.
        federation: its identifier.
        waiting: row of who waits.
        approval: None where no signature is needed.
        now: seconds since 1970.

    Raises:
        ApprovalError: no signature of an active operator other than who waits, or too few of them.

    """
    query = select(MEMBERS).where(MEMBERS.c.role == OPERATOR, MEMBERS.c.status == "active")
    operators = {row.name: row for row in connection.execute(query) if row.name != waiting.name}
    needed = _needed(waiting, len(operators), is_founded=is_founded(connection, now))
    if not needed:
        return 0
    if approval is None or approval.operator not in operators:
        raise ApprovalError(
            "Expected the approval of an active operator, got another. Name your operator's home: "
            "--operator HOME."
        )
    try:
        signed = Signed(approval_payload(federation, waiting), approval.signature)
        verify_signed(operators[approval.operator].identity_key, _DOMAIN, signed)
    except SignatureError as error:
        raise ApprovalError(
            f"Expected {approval.operator}'s signature of this very request, got another. Give the "
            "command again."
        ) from error
    of_request = APPROVALS.c.csr_digest == waiting.csr_digest
    names = set(connection.execute(select(APPROVALS.c.operator).where(of_request)).scalars())
    if approval.operator not in names:
        connection.execute(
            APPROVALS.insert().values(
                csr_digest=waiting.csr_digest,
                operator=approval.operator,
                signature=approval.signature,
                given=now,
            )
        )
    counted = (names | {approval.operator}) & set(operators)
    return max(0, needed - len(counted))


def is_founded(connection: Connection, now: float) -> bool:
    """Tell whether there ever were two operators; once it was told, for good.

    It must be asked before anything that makes them fewer.
    """
    marker = select(APPROVALS).where(APPROVALS.c.csr_digest == _TWO_OPERATORS)
    if connection.execute(marker).first() is not None:
        return True
    query = select(MEMBERS).where(MEMBERS.c.role == OPERATOR)
    ever = [row for row in connection.execute(query) if row.status != "pending" or row.certificate]
    if len(ever) < 2:
        return False
    marked = {"csr_digest": _TWO_OPERATORS, "operator": "", "signature": b"", "given": now}
    connection.execute(APPROVALS.insert().values(**marked))
    return True


def _needed(waiting: Any, active: int, *, is_founded: bool) -> int:
    """Return how many operators must sign, of so many active ones."""
    if waiting.role == OPERATOR and not is_founded:
        return 0
    if waiting.role == OPERATOR and waiting.certificate:  # it was one before
        return min(2, active)
    if active < 2:
        remedy = (
            "Invite and approve operators first: arion node invite NAME --role operator."
            if not is_founded
            else "Have one that left join again; where none can, whoever has this machine sets "
            "approvals to 1 in service.json, approves a new one, and sets it back."
        )
        raise ApprovalError(
            f"Expected two operators before anyone else is approved, got {active}. {remedy}"
        )
    return 2
