"""Joining: an invitation, once; an operator's approval; certificates that name whom we chose."""

import hashlib
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from client.agent import Agent, Downloads
from client.config import NodeError
from client.membership import MEMBERSHIP_FILE, MembershipFile, collect, join, renew
from client.transport import CHUNK_BYTES, Credentials, Link, LinkLost, LinkRefused
from coordinator.service.bindings import RegistryError
from coordinator.service.home import ServiceHome
from coordinator.service.pki import Authority, PkiError, member_uri, read_csr, read_peer
from privacy.enrolment import (
    EnrolmentError,
    Invitation,
    join_payload,
    key_pem,
    new_connection_key,
    signing_request,
)
from privacy.identity import IdentityKey
from tests.service.postgresql import on_both
from tests.service.running import RunningService


def enrol(service: RunningService, home: Path, name: str = "north") -> Link:
    """Invite, join, approve and collect; return a link of the member."""
    invitation = service.home.registry.invite(name)
    join(home, "localhost", service.pair, str(invitation))
    service.home.registry.approve(name)
    membership = collect(home, 5)
    return Link(service.address, membership.credentials)


def refused(code: str, act: Callable[[], object]) -> None:
    with pytest.raises(LinkRefused) as caught:
        act()
    assert caught.value.code == code, caught.value


@on_both
def test_a_node_joins_is_approved_and_is_known(service: RunningService, tmp_path: Path) -> None:
    registry = service.home.registry
    invitation = registry.invite("north")
    joined = join(tmp_path, "localhost", service.pair, str(invitation))
    assert joined.name == "north"
    assert collect(tmp_path, 0).certificate == ""
    (waiting,) = registry.members()
    assert (waiting.name, waiting.status) == ("north", "pending")
    assert waiting.identity_key == IdentityKey.load(tmp_path / "identity.key").public_key
    registry.approve("north")
    membership = collect(tmp_path, 5)
    assert membership.federation == service.home.settings.federation
    assert membership.coordinator_key == service.home.key.public_key.hex()
    assert (tmp_path / MEMBERSHIP_FILE).stat().st_mode & 0o777 == 0o600
    link = Link(service.address, membership.credentials)
    assert link.answer("0" * 32, "Done", b"", b"") is False  # nobody asked: known, and over
    link.close()


@on_both
def test_an_invitation_is_for_one_node_once(service: RunningService, tmp_path: Path) -> None:
    invitation = str(service.home.registry.invite("north"))
    join(tmp_path / "a", "localhost", service.pair, invitation)
    join(tmp_path / "a", "localhost", service.pair, invitation)  # the same request, after a crash
    with pytest.raises(NodeError, match="was not used"):
        join(tmp_path / "b", "localhost", service.pair, invitation)
    assert [member.name for member in service.home.registry.members()] == ["north"]


@on_both
def test_a_revocation_beside_an_approval_stands(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The approval has read that the node waits, and is about to say that it is active."""
    registry = service.home.registry
    join(tmp_path, "localhost", service.pair, str(registry.invite("north")))
    revoking = threading.Thread(target=registry.revoke, args=("north",))
    issue = registry._issue

    def issue_later(*arguments: object) -> bytes:
        revoking.start()
        revoking.join(1.0)  # it goes through at once, or waits for the approval
        return issue(*arguments)

    monkeypatch.setattr(registry, "_issue", issue_later)
    registry.approve("north")
    revoking.join(20)
    assert not revoking.is_alive()
    (member,) = registry.members()
    assert member.status == "revoked"


@on_both
def test_an_invitation_expires(service_home: ServiceHome, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = service_home.registry
    invitation = registry.invite("north")
    key, identity = new_connection_key(), IdentityKey.generate()
    csr = signing_request(key, "x")
    signed = identity.sign("join", join_payload(invitation.digest, csr))
    monkeypatch.setattr(registry, "_clock", lambda: time.time() + 8 * 24 * 3600)
    with pytest.raises(RegistryError, match="valid and was not used"):
        registry.join(invitation.secret, csr, identity.public_key, signed.signature)


def test_the_database_holds_no_secret(service_home: ServiceHome, tmp_path: Path) -> None:
    invitation = service_home.registry.invite("north")
    raw = b"".join(
        path.read_bytes() for path in (tmp_path / "service").rglob("*") if path.is_file()
    )
    assert invitation.secret not in raw
    assert invitation.digest.encode() in raw
    assert str(invitation) not in repr(invitation)


@pytest.mark.parametrize("wrong", ["identity", "request", "invitation"])
def test_a_request_is_bound_to_its_identity(service_home: ServiceHome, wrong: str) -> None:
    """Whoever intercepts a request cannot put another key under it."""
    registry, identity = service_home.registry, IdentityKey.generate()
    invitation = registry.invite("north")
    csr, other = (signing_request(new_connection_key(), "x") for _ in range(2))
    digest = "0" * 64 if wrong == "invitation" else invitation.digest
    signed = identity.sign("join", join_payload(digest, csr))
    public = IdentityKey.generate().public_key if wrong == "identity" else identity.public_key
    with pytest.raises(RegistryError) as caught:
        registry.join(
            invitation.secret, other if wrong == "request" else csr, public, signed.signature
        )
    assert caught.value.code == "bad-signature"
    assert registry.members() == []


@on_both
def test_names_and_roles_are_checked_and_approval_comes_once(service_home: ServiceHome) -> None:
    registry = service_home.registry
    for name, role in (("North", "node"), ("../x", "node"), ("n" * 64, "node"), ("n", "root")):
        with pytest.raises(RegistryError, match="a-z"):
            registry.invite(name, role)
    with pytest.raises(RegistryError, match="nobody"):
        registry.approve("north")
    with pytest.raises(RegistryError, match="Expected a member"):
        registry.revoke("north")


@pytest.mark.parametrize("text", ["", "arion1.abc", "arion2.a.b", "arion1.####.####"])
def test_what_is_no_invitation(text: str, tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="Expected"):
        Invitation.parse(text)
    with pytest.raises(NodeError, match="Expected"):
        join(tmp_path, "localhost", (1, 2), text)


def test_another_authority_is_not_talked_to(service: RunningService, tmp_path: Path) -> None:
    """An invitation with a foreign authority, as a man in the middle would hand out."""
    other = Authority.create(tmp_path, "other")
    token = str(Invitation.new(other.pem))
    with pytest.raises(LinkLost):
        join(tmp_path / "node", "localhost", service.pair, token)


def test_a_certificate_says_what_we_chose(service_home: ServiceHome) -> None:
    csr = signing_request(new_connection_key(), "operator/root")
    certificate = service_home.authority.issue_member(csr, "north", "node", "f")
    uris = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(uris.get_values_for_type(x509.UniformResourceIdentifier)) == [
        member_uri("f", "node", "north")
    ]
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    life = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(hours=23) < life <= timedelta(hours=24)
    pem = certificate.public_bytes(Encoding.PEM)
    peer = read_peer(pem, "f", datetime.now(UTC))
    assert (peer.name, peer.role) == ("north", "node")
    for federation, later in (("g", 0), ("f", 25)):
        with pytest.raises(PkiError):
            read_peer(pem, federation, datetime.now(UTC) + timedelta(hours=later))
    server = service_home.authority.issue_server(new_connection_key(), ["localhost"])
    with pytest.raises(PkiError, match="member's certificate"):
        read_peer(server.public_bytes(Encoding.PEM), "f", datetime.now(UTC))


def test_requests_that_are_not_signed_by_a_p256_key() -> None:
    with pytest.raises(PkiError, match="signing request"):
        read_csr(b"nothing")
    name = x509.Name([])
    for key, algorithm in (
        (ec.generate_private_key(ec.SECP384R1()), SHA256()),
        (ed25519.Ed25519PrivateKey.generate(), None),
    ):
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
        with pytest.raises(PkiError, match="P-256"):
            read_csr(request.public_bytes(Encoding.PEM))


@on_both
def test_a_revoked_node_is_refused_on_its_next_call(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path)
    assert link.answer("0" * 32, "Done", b"", b"") is False
    listening = link.listen(30)
    service.home.registry.revoke("north")
    refused("revoked", lambda: link.answer("0" * 32, "Done", b"", b""))
    refused("revoked", lambda: next(listening))
    link.close()


def test_an_open_stream_of_a_revoked_node_is_closed(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path)
    mailbox, (member,) = service.home.mailbox, service.home.registry.members()
    mailbox.post("r", member.address, "query.keys", ("EpochRequest", b"", b""))
    listening = link.listen(30)
    assert next(listening).action == "query.keys"
    service.home.registry.revoke("north")
    refused("revoked", lambda: next(listening))
    link.close()


def test_foreign_expired_and_server_certificates_are_refused(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path)
    link.close()
    membership = MembershipFile(tmp_path).load()
    authority, evil = service.home.authority, Authority.create(tmp_path, "evil")
    key = new_connection_key()
    csr = signing_request(key, "x")
    federation, over = service.home.settings.federation, -timedelta(seconds=1)
    certificates = {
        "foreign": evil.issue_member(csr, "north", "node", federation),
        "expired": authority.issue_member(csr, "north", "node", federation, life=over),
        "server": authority.issue_server(key, ["localhost"]),
        "unknown": authority.issue_member(csr, "nobody", "node", federation),
        "role": authority.issue_member(csr, "north", "operator", federation),
    }
    for case, certificate in certificates.items():
        credentials = Credentials(
            membership.authority.encode(), key_pem(key), certificate.public_bytes(Encoding.PEM)
        )
        other = Link(service.address, credentials)
        with pytest.raises((LinkLost, LinkRefused)) as caught:
            other.answer("0" * 32, "Done", b"", b"")
        if case in ("unknown", "role"):
            assert isinstance(caught.value, LinkRefused)
        other.close()
    without = Link(service.address, Credentials(membership.authority.encode()))
    with pytest.raises(LinkLost):
        without.answer("0" * 32, "Done", b"", b"")
    without.close()


@on_both
def test_a_certificate_is_renewed_with_a_new_key(service: RunningService, tmp_path: Path) -> None:
    link = enrol(service, tmp_path)
    before = MembershipFile(tmp_path).load()
    assert before.due_in_s > 15 * 3600
    after = renew(tmp_path, link)
    link.close()
    assert after.key != before.key
    assert after.certificate != before.certificate
    renewed = Link(service.address, after.credentials)
    assert renewed.answer("0" * 32, "Done", b"", b"") is False
    renewed.close()
    (member,) = service.home.registry.members()
    assert member.certificate.decode() == after.certificate
    assert member.status == "active"


def test_a_home_that_has_joined_is_not_overwritten(service: RunningService, tmp_path: Path) -> None:
    enrol(service, tmp_path).close()
    before = hashlib.sha256((tmp_path / MEMBERSHIP_FILE).read_bytes()).digest()
    token = str(service.home.registry.invite("south"))
    with pytest.raises(NodeError, match="has not joined"):
        join(tmp_path, "localhost", service.pair, token)
    assert hashlib.sha256((tmp_path / MEMBERSHIP_FILE).read_bytes()).digest() == before


@on_both
def test_a_member_comes_back_with_its_identity_and_nobody_else_does(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was away for longer than its certificate lives joins again, under its name."""
    enrol(service, tmp_path / "node").close()
    registry = service.home.registry
    with pytest.raises(NodeError, match="joined before"):
        join(tmp_path / "thief", "localhost", service.pair, str(registry.invite("north")))
    (member,) = registry.members()
    assert member.status == "active"
    later = SimpleNamespace(now=lambda zone: datetime.now(zone) + timedelta(hours=25))
    with monkeypatch.context() as patch:
        patch.setattr("client.membership.datetime", later)
        with pytest.raises(NodeError, match="away too long"):
            _ = MembershipFile(tmp_path / "node").load().due_in_s
        again = join(tmp_path / "node", "localhost", service.pair, str(registry.invite("north")))
    (waiting,) = registry.members()
    assert (waiting.address, waiting.identity_key) == (member.address, member.identity_key)
    assert waiting.status == "pending"
    registry.approve("north")
    renewed = Link(service.address, collect(tmp_path / "node", 5).credentials)
    assert renewed.answer("0" * 32, "Done", b"", b"") is False
    renewed.close()
    assert again.name == "north"


def test_other_roles_have_no_messages(service: RunningService, tmp_path: Path) -> None:
    registry = service.home.registry
    join(tmp_path, "localhost", service.pair, str(registry.invite("clerk", "auditor")))
    registry.approve("clerk")
    link = Link(service.address, collect(tmp_path, 5).credentials)
    refused("wrong-role", lambda: next(link.listen(30)))
    refused("wrong-role", lambda: link.answer("0" * 32, "Done", b"", b""))
    link.close()


def test_the_server_certificate_is_renewed_without_a_restart(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "localhost", service.ports.enrolment
    first = ssl.get_server_certificate(place)
    assert ssl.get_server_certificate(place) == first
    monkeypatch.setattr("coordinator.service.serve._RENEW_AFTER_S", 0.0)
    assert ssl.get_server_certificate(place) != first


def test_an_idle_node_renews_its_certificate(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of it; the stream closes when the certificate is due, and opens again."""
    monkeypatch.setattr("coordinator.service.pki._CLOCK_SKEW", timedelta())
    defaults = Authority.issue_member.__kwdefaults__
    monkeypatch.setitem(defaults, "life", timedelta(seconds=6))
    enrol(service, tmp_path).close()
    monkeypatch.setitem(defaults, "life", timedelta(hours=1))
    before = MembershipFile(tmp_path).load().certificate
    agent = Agent(tmp_path, lambda *question: ("Done", b"", b""))
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while (after := MembershipFile(tmp_path).load()).certificate == before:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert after.due_in_s > 2000
    (member,) = service.home.registry.members()
    posted = service.home.mailbox.post("r", member.address, "query.head", ("HeadQuery", b"", b""))
    while service.home.mailbox.first_answer([posted]) is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    agent.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_a_node_that_was_not_approved_does_not_serve(
    service: RunningService, tmp_path: Path
) -> None:
    join(tmp_path, "localhost", service.pair, str(service.home.registry.invite("north")))
    with pytest.raises(NodeError, match="was approved"):
        Agent(tmp_path, lambda *question: ("Done", b"", b"")).run()


def test_a_payload_that_arrives_altered_is_not_used(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path / "node")
    mailbox, (member,) = service.home.mailbox, service.home.registry.members()
    payload = bytes(3_000_000)
    mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", payload))
    envelope = next(link.listen(30))
    assert link.fetch(envelope.payload_digest, envelope.payload_bytes, []) == payload
    blob = service.home.path / "blobs" / envelope.payload_digest.hex()
    for altered in (payload[:-1] + b"x", payload[:-1], payload + b"x"):
        blob.write_bytes(altered)
        refused("other-payload", lambda: link.fetch(envelope.payload_digest, len(payload), []))
    refused("unknown-payload", lambda: link.fetch(bytes(32), 1, []))
    link.close()


def test_a_download_goes_on_where_it_was_lost_and_is_kept(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path / "node")
    mailbox, (member,) = service.home.mailbox, service.home.registry.members()
    payload = bytes(range(256)) * 20_000  # five chunks
    mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", payload))
    envelope = next(link.listen(30))
    flaky, downloads = Flaky(link, chunks=2), Downloads()
    with pytest.raises(LinkLost):
        downloads.get(flaky, envelope)
    assert downloads.get(flaky, envelope) == payload
    assert downloads.get(flaky, envelope) == payload
    assert flaky.offsets == [0, 2 * CHUNK_BYTES]
    link.close()


class Flaky:
    """A link whose first download is lost after some chunks."""

    def __init__(self, link: Link, chunks: int) -> None:
        self._link, self._chunks = link, chunks
        self.offsets: list[int] = []

    def fetch(self, digest: bytes, size: int, begun: list[bytes]) -> bytes:
        self.offsets.append(sum(map(len, begun)))
        if len(self.offsets) == 1:
            whole = self._link.fetch(digest, size, [])
            begun += [whole[at * CHUNK_BYTES :][:CHUNK_BYTES] for at in range(self._chunks)]
            raise LinkLost("lost")
        return self._link.fetch(digest, size, begun)
