"""How an institution's node joins a federation: invitation, connection key, signed request.

Both sides use this code. An invitation holds a one-time secret and the certificate of the
coordinator's authority, so that the node knows whom it talks to from the first byte on.
"""

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from privacy.canonical import canonical_bytes

PROTOCOL = 3
"""Version of the exchange between node and coordinator: 3 names payloads by BLAKE3."""
OLDEST_PROTOCOL = 2
"""Version that is still spoken, so that either side may be upgraded first."""
NAME = re.compile(r"[a-z0-9-]{1,63}")
BLAKE3_PAYLOADS = 3
"""Version from which on payloads are named by BLAKE3; those before know SHA-256 alone."""
_PREFIX = "arion1"
_SECRET_BYTES = 32
_PARTS = 3
_ALTERED = "Expected a whole invitation, got one with missing or altered characters. Copy it again."


class EnrolmentError(ValueError):
    """An invitation or a request that is not one."""


@dataclass(frozen=True)
class Invitation:
    """What an operator hands to an institution, through a channel of their own.

    Attributes:
        secret: 32 random bytes, used once; the coordinator keeps their digest only.
        authority: certificate of the coordinator's authority, DER.

    """

    secret: bytes = field(repr=False)
    authority: bytes

    @classmethod
    def new(cls, authority_pem: bytes) -> "Invitation":
        """Draw a secret from the system's CSPRNG."""
        certificate = x509.load_pem_x509_certificate(authority_pem)
        return cls(secrets.token_bytes(_SECRET_BYTES), certificate.public_bytes(Encoding.DER))

    @classmethod
    def parse(cls, text: str) -> "Invitation":
        """Read what `str` gave.

        Raises:
            EnrolmentError: the message says what is wrong, never the secret.

        """
        parts = text.strip().split(".")
        if len(parts) != _PARTS or parts[0] != _PREFIX:
            raise EnrolmentError(
                f"Expected an invitation that begins with {_PREFIX}., got {len(text)} other "
                "characters. Copy all of what `arion node invite` printed."
            )
        try:
            secret, authority = (
                base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts[1:]
            )
            x509.load_der_x509_certificate(authority)
        except (ValueError, binascii.Error) as error:
            raise EnrolmentError(_ALTERED) from error
        if len(secret) != _SECRET_BYTES:
            raise EnrolmentError("Expected a secret of 32 bytes in the invitation, got another.")
        return cls(secret, authority)

    def verify_whole(self) -> None:
        """Check the authority's signature of itself, which TLS does not ask of a root.

        Raises:
            EnrolmentError: characters were altered on the way.

        """
        certificate = x509.load_der_x509_certificate(self.authority)
        try:
            certificate.verify_directly_issued_by(certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise EnrolmentError(_ALTERED) from error

    def __str__(self) -> str:
        """The text that is handed over."""
        encoded = (
            base64.urlsafe_b64encode(part).rstrip(b"=").decode()
            for part in (self.secret, self.authority)
        )
        return ".".join((_PREFIX, *encoded))

    @property
    def digest(self) -> str:
        """What the coordinator keeps of the secret, hex."""
        return hashlib.sha256(self.secret).hexdigest()

    @property
    def authority_pem(self) -> bytes:
        """Certificate of the authority, PEM."""
        return x509.load_der_x509_certificate(self.authority).public_bytes(Encoding.PEM)


def new_connection_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key for a connection; gRPC's TLS takes no Ed25519."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key, PKCS 8 in PEM, unencrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """Return a certificate signing request in PEM; the authority sets names of its own choice."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    return request.public_bytes(Encoding.PEM)


def join_payload(secret_digest: str, csr_pem: bytes) -> bytes:
    """Return what the identity key signs to join: it binds the connection key to the identity."""
    request = hashlib.sha256(csr_pem).hexdigest()
    return canonical_bytes({"version": 1, "invitation": secret_digest, "request": request})


def renew_payload(csr_pem: bytes) -> bytes:
    """Return what the identity key signs to renew: a stolen connection key is not enough."""
    return canonical_bytes({"version": 1, "request": hashlib.sha256(csr_pem).hexdigest()})
