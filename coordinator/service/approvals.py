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
    them; nobody else is before there are two.

    Args:
        connection: of a transaction.
        federation: its identifier.
        waiting: row of who waits.
        approval: None for the first operators.
        now: seconds since 1970.

    Raises:
        ApprovalError: no signature of an active operator other than who waits.

    """
    query = select(MEMBERS).where(MEMBERS.c.role == OPERATOR, MEMBERS.c.status == "active")
    operators = {row.name: row for row in connection.execute(query) if row.name != waiting.name}
    if len(operators) < 2:
        if waiting.role == OPERATOR:
            return 0
        raise ApprovalError(
            f"Expected two operators before anyone else is approved, got {len(operators)}. Invite "
            "and approve operators first: arion node invite NAME --role operator."
        )
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
    return max(0, 2 - len(counted))
