"""The coordinator's certificate authority: it authorises connections, and nothing more.

What a member says is believed because of its identity key, which this authority never sees the
private half of. P-256 throughout: gRPC's TLS takes no Ed25519.
"""

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privacy.enrolment import key_pem, new_connection_key
from privacy.ledger.files import replace_durably

Role = Literal["node", "operator", "auditor"]
ROLES: tuple[Role, ...] = ("node", "operator", "auditor")
CA_KEY, CA_CERTIFICATE = "ca.key", "ca.pem"
NODE_LIFE = timedelta(hours=24)
SERVER_LIFE = timedelta(days=30)
_CA_LIFE = timedelta(days=3650)
_CLOCK_SKEW = timedelta(minutes=5)


class PkiError(ValueError):
    """A request, a certificate or a name that this authority does not accept."""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a connection, as its certificate says.

    Attributes:
        name: set by the authority when it signed, never by the request.
        role: the same.
        serial: of the certificate, hex.
        issued: when the authority signed it.
        expires: end of the certificate's life.

    """

    name: str
    role: Role
    serial: str
    issued: datetime
    expires: datetime


@dataclass(frozen=True)
class Authority:
    """The authority's key and certificate.

    Attributes:
        certificate: self-signed; every invitation holds it.

    """

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def create(cls, home: Path, federation: str) -> "Authority":
        """Make an authority and write it, the key readable by its owner only."""
        key = new_connection_key()
        name = _name(f"Arion {federation}"[:64])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, SHA256())
        )
        replace_durably(home / CA_KEY, key_pem(key))
        replace_durably(home / CA_CERTIFICATE, certificate.public_bytes(Encoding.PEM))
        return cls(key, certificate)

    @classmethod
    def load(cls, home: Path) -> "Authority":
        """Read what `create` wrote.

        Raises:
            PkiError: missing or damaged.

        """
        try:
            key = load_pem_private_key((home / CA_KEY).read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((home / CA_CERTIFICATE).read_bytes())
        except (OSError, ValueError) as error:
            raise PkiError(
                f"Expected a certificate authority in {home}, got {type(error).__name__}. "
                "Run `arion coordinator init`, or restore the home from a backup."
            ) from error
        assert isinstance(key, ec.EllipticCurvePrivateKey), "create() makes P-256 keys"
        if key.public_key() != certificate.public_key():
            raise PkiError(
                f"Expected {CA_KEY} and {CA_CERTIFICATE} in {home} to belong together, got two "
                "authorities' files: one was being replaced. Give arion coordinator "
                "replace-authority again, or restore the home from a backup."
            )
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        """The certificate, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue_member(
        self,
        csr_pem: bytes,
        name: str,
        role: Role,
        federation: str,
        *,
        life: timedelta = NODE_LIFE,
        issued: datetime | None = None,
    ) -> x509.Certificate:
        """Sign a member's key for a name and a role of our choice; the request's are ignored.

        Args:
            csr_pem: signing request.
            name, role, federation: what the certificate says.
            life: of the certificate, from `issued` on.
            issued: now, or a moment that is less than five minutes away.

        Raises:
            PkiError: not a request, one that its key did not sign, or a key that is not P-256.

        """
        key = read_csr(csr_pem)
        names = [x509.UniformResourceIdentifier(member_uri(federation, role, name))]
        return self._issue(
            key, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, life=life, issued=issued
        )

    def issue_server(
        self, key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], life: timedelta = SERVER_LIFE
    ) -> x509.Certificate:
        """Sign the service's own key for the hosts that nodes dial."""
        names = [_host(host) for host in hosts]
        purpose = ExtendedKeyUsageOID.SERVER_AUTH
        return self._issue(key.public_key(), hosts[0], names, purpose, life=life)

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        names: Sequence[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        *,
        life: timedelta,
        issued: datetime | None = None,
    ) -> x509.Certificate:
        now = issued or datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name[:64]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
            )
            .sign(self.key, SHA256())
        )


def read_csr(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a signing request; PkiError as `Authority.issue_member`."""
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        valid, key = request.is_signature_valid, request.public_key()
    except (ValueError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise PkiError(
            f"Expected a certificate signing request in PEM, got {len(csr_pem)} other bytes."
        ) from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise PkiError("Expected a request signed by its own P-256 key, got another one.")
    if not isinstance(key.curve, ec.SECP256R1):
        raise PkiError(f"Expected a P-256 key, got {key.curve.name}.")
    return key


def read_peer(certificate_pem: bytes, federation: str, now: datetime) -> Peer:
    """Read name and role of a certificate that TLS has verified; expiry is checked on each call.

    Raises:
        PkiError: expired, for another federation, or not for a member.

    """
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    prefix = member_uri(federation, "", "")[:-1]
    parts = uris[0].removeprefix(prefix).split("/") if len(uris) == 1 else []
    roles = [role for role in ROLES if parts[:1] == [role]]
    if len(parts) != 2 or not roles or not uris[0].startswith(prefix):
        raise PkiError(f"Expected a member's certificate of {federation!r}, got another.")
    if certificate.not_valid_after_utc < now:
        raise PkiError("Expected a certificate that has not expired, got one that has. Renew it.")
    return Peer(
        parts[1],
        roles[0],
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc + _CLOCK_SKEW,
        certificate.not_valid_after_utc,
    )


def member_uri(federation: str, role: str, name: str) -> str:
    """Return the SPIFFE id of a member; the trust domain is the federation's digest."""
    domain = hashlib.sha256(federation.encode()).hexdigest()[:32]
    return f"spiffe://{domain}.arion/{role}/{name}"


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
