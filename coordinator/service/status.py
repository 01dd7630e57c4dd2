"""What an operator sees of a service: members, what waits, what the disk holds, what expires."""

from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from coordinator.service import schema
from coordinator.service.home import ServiceHome
from coordinator.service.members import Member
from coordinator.service.probe import State, state_of
from privacy.identity import fingerprint


def member_rows(home: ServiceHome) -> list[dict[str, Any]]:
    """What is shown of members, sorted by name."""
    waiting = home.mailbox.newest()
    return [
        {
            "name": member.name,
            "role": member.role,
            "status": member.status,
            "fingerprint": fingerprint(member.identity_key),
            "seen": member.seen,
            "certificate_expires": _expiry(member),
            "messages_waiting": waiting.get(member.address, (0, 0.0))[0],
            "answer_bytes": home.mailbox.held_bytes(member.address),
        }
        for member in home.registry.members()
    ]


def invitation_rows(home: ServiceHome) -> list[dict[str, str]]:
    """What is shown of invitations that nobody used yet."""
    return [
        {"name": name, "role": role, "expires": _iso(datetime.fromtimestamp(expires, UTC))}
        for name, role, expires in home.registry.invitations()
    ]


def service_status(home: ServiceHome) -> dict[str, Any]:
    """What is shown of a service as a whole; no private value is in it."""
    blobs, state = home.mailbox.blobs, state_of(home)
    return {
        "federation": home.settings.federation,
        "fingerprint": fingerprint(home.key.public_key),
        "is_serving": state is State.SERVING,
        "state": str(state),
        "database": home.engine.dialect.name,
        "schema": schema.newest(),
        "authority_expires": _iso(home.authority.certificate.not_valid_after_utc),
        "payload_bytes": blobs.kept_bytes(),
        "disk_free_bytes": blobs.free_bytes(),
        "members": member_rows(home),
        "invitations": invitation_rows(home),
    }


def _expiry(member: Member) -> str | None:
    if not member.certificate:
        return None
    return _iso(x509.load_pem_x509_certificate(member.certificate).not_valid_after_utc)


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
