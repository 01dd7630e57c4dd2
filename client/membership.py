"""What a node keeps of its membership: where the coordinator is, and the keys of its connection."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.config import IDENTITY_FILE, NodeError
from client.proxy import link_to
from client.transport import Credentials, Link, LinkRefused
from privacy.enrolment import (
    EnrolmentError,
    Invitation,
    join_payload,
    key_pem,
    new_connection_key,
    renew_payload,
    signing_request,
)
from privacy.identity import IdentityKey
from privacy.ledger.files import make_directory, replace_durably

MEMBERSHIP_FILE = "membership.json"
_RENEW_AFTER = 2 / 3
_POLL_S = 2.0


class Membership(BaseModel):
    """A node's membership; the file is readable by its owner only, as it holds a key.

    Attributes:
        address: host and port of the exchange.
        enrolment_address: of joining.
        name: the node's name, once the coordinator said it.
        federation, coordinator_key: what the coordinator says of itself: compare before pinning.
        authority: certificate of the coordinator's authority, PEM.
        key, request: the connection key and its signing request, PEM.
        certificate: PEM; empty before approval.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(min_length=3, max_length=300)
    enrolment_address: str = Field(min_length=3, max_length=300)
    name: str = ""
    federation: str = ""
    coordinator_key: str = ""
    authority: str
    key: str = Field(repr=False)
    request: str
    certificate: str = ""

    @property
    def credentials(self) -> Credentials:
        """What the connection uses."""
        return Credentials(self.authority.encode(), self.key.encode(), self.certificate.encode())

    @property
    def due_in_s(self) -> float:
        """Seconds until two thirds of the certificate's life are over; below 0 where they are.

        Raises:
            NodeError: as `check_renewable`.

        """
        self.check_renewable()
        found = self._certificate()
        life = found.not_valid_after_utc - found.not_valid_before_utc
        due = found.not_valid_before_utc + life * _RENEW_AFTER
        return (due - datetime.now(UTC)).total_seconds()

    def check_renewable(self) -> None:
        """Refuse to go on without a certificate, or with one that has expired; NodeError."""
        if not self.certificate:
            raise NodeError(
                "Expected a node that was approved, got one that waits. Have the operator approve "
                "it, then give the command arion node join again."
            )
        if self.is_expired:
            ended = self._certificate().not_valid_after_utc
            raise NodeError(
                f"Expected a certificate that has not expired, got one that ended at "
                f"{ended:%Y-%m-%d %H:%M} UTC: the node was away too long. Ask "
                "the operator for a new invitation, and give arion node join again with this home."
            )

    @property
    def is_expired(self) -> bool:
        """Whether the certificate's life is over."""
        return datetime.now(UTC) > self._certificate().not_valid_after_utc

    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate.encode())


@dataclass(frozen=True)
class MembershipFile:
    """The membership in a node's home."""

    home: Path

    def load(self) -> Membership:
        """Read it.

        Raises:
            NodeError: the node has not joined, or the file is damaged.

        """
        path = self.home / MEMBERSHIP_FILE
        try:
            return Membership.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise NodeError(
                f"Expected the node's membership at {path}, got {type(error).__name__}. Join "
                "first: arion node join."
            ) from error

    def save(self, membership: Membership) -> None:
        """Write it durably."""
        text = membership.model_dump_json(indent=2).encode() + b"\n"
        replace_durably(self.home / MEMBERSHIP_FILE, text)


def join(home: Path, host: str, ports: tuple[int, int], token: str) -> Membership:
    """Join a federation: make keys that are missing, consume the invitation, ask for approval.

    May be called again after a crash: keys and request are kept before the invitation is used.

    Args:
        home: the node's home; its identity key is made here and never leaves.
        host: of the coordinator.
        ports: of the exchange and of enrolment.
        token: what `arion node invite` printed.

    Raises:
        NodeError: an invitation that is not one, or a coordinator that refuses it.
        LinkLost: the coordinator cannot be reached.

    """
    try:
        invitation = Invitation.parse(token)
        invitation.verify_whole()
    except EnrolmentError as error:
        raise NodeError(str(error)) from error
    make_directory(home)
    identity = _identity(home)
    file = MembershipFile(home)
    membership = _prepared(file, host, ports, invitation)
    signed = identity.sign("join", join_payload(invitation.digest, membership.request.encode()))
    link = link_to(home, membership.enrolment_address, Credentials(invitation.authority_pem))
    try:
        name = link.join(
            token.strip(), membership.request.encode(), identity.public_key, signed.signature
        )
    except LinkRefused as error:
        raise NodeError(str(error)) from error
    finally:
        link.close()
    membership = membership.model_copy(update={"name": name})
    file.save(membership)
    return membership


def collect(home: Path, wait_s: float) -> Membership:
    """Fetch the certificate, waiting for the operator's approval.

    Args:
        home: of a node that has joined.
        wait_s: how long to wait; 0 asks once.

    Returns:
        The membership; without a certificate where the time was over.

    Raises:
        NodeError: the coordinator refuses, or revoked the node.
        LinkLost: the coordinator cannot be reached.

    """
    file = MembershipFile(home)
    membership = file.load()
    credentials = Credentials(membership.authority.encode())
    link = link_to(home, membership.enrolment_address, credentials)
    end = time.monotonic() + wait_s
    try:
        while True:
            found = link.collect(membership.request.encode())
            if found.status == "active":
                membership = membership.model_copy(
                    update={
                        "certificate": found.certificate.decode(),
                        "federation": found.federation,
                        "coordinator_key": found.coordinator_key.hex(),
                    }
                )
                file.save(membership)
                return membership
            if found.status == "revoked":
                raise NodeError("Expected an approval, got a revocation. Ask the operator.")
            if time.monotonic() >= end:
                return membership
            time.sleep(_POLL_S)
    except LinkRefused as error:
        raise NodeError(str(error)) from error
    finally:
        link.close()


@contextmanager
def dialled(home: Path) -> Iterator[Link]:
    """Dial the coordinator for one command of a member, renewing its certificate where it is due.

    Raises:
        NodeError: as `rotate`; also where the coordinator refuses a call in the block.
        LinkLost: the coordinator cannot be reached.

    """
    membership = MembershipFile(home).load()
    if membership.due_in_s < 0:
        membership = rotate(home)
    link = link_to(home, membership.address, membership.credentials)
    try:
        yield link
    except LinkRefused as error:
        raise NodeError(str(error)) from error
    finally:
        link.close()


def rotate(home: Path) -> Membership:
    """Dial the coordinator, and replace connection key and certificate at once.

    Raises:
        NodeError: not joined or approved, the certificate has expired, or the coordinator refuses.
        LinkLost: the coordinator cannot be reached.

    """
    membership = MembershipFile(home).load()
    membership.check_renewable()
    link = link_to(home, membership.address, membership.credentials)
    try:
        return renew(home, link)
    except LinkRefused as error:
        raise NodeError(str(error)) from error
    finally:
        link.close()


def renew(home: Path, link: Link) -> Membership:
    """Replace the connection key and its certificate by new ones; the identity key signs them."""
    file = MembershipFile(home)
    membership = file.load()
    key = new_connection_key()
    request = signing_request(key, membership.name)
    signed = IdentityKey.load(home / IDENTITY_FILE).sign("renew", renew_payload(request))
    certificate = link.renew(request, signed.signature)
    membership = membership.model_copy(
        update={
            "key": key_pem(key).decode(),
            "request": request.decode(),
            "certificate": certificate.decode(),
        }
    )
    file.save(membership)
    return membership


def _identity(home: Path) -> IdentityKey:
    path = home / IDENTITY_FILE
    if not path.exists():
        IdentityKey.generate().save(path)
    return IdentityKey.load(path)


def _prepared(
    file: MembershipFile, host: str, ports: tuple[int, int], invitation: Invitation
) -> Membership:
    """The membership that was begun with this invitation's authority, or a new one.

    Where the coordinator is, is what was given last.
    """
    authority = invitation.authority_pem.decode()
    places = {"address": f"{host}:{ports[0]}", "enrolment_address": f"{host}:{ports[1]}"}
    membership = _begun(file, authority)
    if membership is None:
        key = new_connection_key()
        request = signing_request(key, "node").decode()
        membership = Membership(
            **places, authority=authority, key=key_pem(key).decode(), request=request
        )
    membership = membership.model_copy(update=places)
    file.save(membership)
    return membership


def _begun(file: MembershipFile, authority: str) -> Membership | None:
    """The membership that waits for approval by this authority; None where one may begin anew.

    Raises:
        NodeError: the home has joined, or waits for another coordinator.

    """
    if not (file.home / MEMBERSHIP_FILE).exists():
        return None
    found = file.load()
    if found.certificate and not found.is_expired:
        raise NodeError(
            f"Expected a home that has not joined, got one that is {found.name!r}. Use "
            "another home, or remove membership.json from this one."
        )
    if not found.certificate and found.name and found.authority != authority:
        raise NodeError(
            f"Expected an invitation of the coordinator that {found.name!r} waits for, got one of "
            "another. Use another home, or remove membership.json from this one to wait no more."
        )
    return found if not found.certificate and found.authority == authority else None
