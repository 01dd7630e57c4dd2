"""Certificates name whom we chose, end in time, are renewed, and are asked for on every call."""

import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from client.agent import Agent
from client.membership import MembershipFile, renew
from client.transport import Credentials, Link, LinkLost, LinkRefused
from coordinator.service.home import ServiceHome
from coordinator.service.pki import Authority, PkiError, member_uri, read_csr, read_peer
from privacy.enrolment import (
    key_pem,
    new_connection_key,
    signing_request,
)
from tests.service.members import enrol, refused
from tests.service.postgresql import on_both
from tests.service.running import RunningService


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
