"""Signatures by which a member's identity key stands for its connection keys."""

from typing import Any

from privacy.enrolment import join_payload, renew_payload
from privacy.identity import SignatureError, Signed, verify_signed

_KEY_BYTES = 32


class RegistryError(ValueError):
    """An act that the registry refuses.

    Attributes:
        code: fixed code of the case; goes over the wire.

    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_join(identity_key: bytes, digest: str, csr: bytes, signature: bytes) -> None:
    """Check that the identity key signed an invitation's digest and a request together.

    Raises:
        RegistryError: another signature, or a key that is not one.

    """
    try:
        if len(identity_key) != _KEY_BYTES:
            raise SignatureError("Expected an identity key of 32 bytes.")
        verify_signed(identity_key, "join", Signed(join_payload(digest, csr), signature))
    except SignatureError as error:
        raise RegistryError(
            "bad-signature",
            "Expected the request and the invitation signed by the identity key, got another "
            "signature. Run `arion node join` again.",
        ) from error


def check_renewal(row: Any, csr: bytes, signature: bytes) -> None:
    """Check that the identity key of a member (its row) signed a renewal.

    Raises:
        RegistryError: another signature, or none.

    """
    try:
        verify_signed(row.identity_key, "renew", Signed(renew_payload(csr), signature))
    except SignatureError as error:
        raise RegistryError(
            "bad-signature",
            "Expected a renewal signed by the member's identity key, got another or none. Upgrade "
            "the node, or join again with a new invitation.",
        ) from error
