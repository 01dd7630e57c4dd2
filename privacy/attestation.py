"""In-toto statements in DSSE envelopes: who vouches for which files.

The signer's public key travels in the envelope, so that its fingerprint can be shown and compared
with one that was obtained out of band; without that comparison a signature says only that the
envelope is whole.

Source: in-toto Attestation Framework, Statement v1; DSSE v1.0.0.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privacy.canonical import JsonLike, canonical_bytes
from privacy.identity import IdentityKey, fingerprint, pre_authentication

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"


class AttestationError(ValueError):
    """An attestation that is damaged, signed by another key, or about other files."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Signature(_Frozen):
    keyid: str
    sig: str
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Envelope(_Frozen):
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    payload: str
    signatures: tuple[_Signature]


class _Subject(_Frozen):
    name: str
    digest: dict[Literal["sha256"], str]


class _Statement(_Frozen):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject, ...]
    predicate_type: str = Field(alias="predicateType")
    predicate: dict[str, Any]


@dataclass(frozen=True)
class Attested:
    """A statement whose signature held.

    Attributes:
        signer: fingerprint of the key. files: SHA-256 by name. predicate: what is said of them.

    """

    signer: str
    files: Mapping[str, str]
    predicate: Mapping[str, Any]


def attest(
    key: IdentityKey, files: Mapping[str, str], predicate_type: str, predicate: Mapping[str, Any]
) -> bytes:
    """Return a signed envelope.

    Args:
        files: SHA-256, hex, by name. predicate_type: a URI. predicate: JSON with a canonical form.

    """
    subject: list[JsonLike] = [
        {"name": name, "digest": {"sha256": files[name]}} for name in sorted(files)
    ]
    statement: dict[str, JsonLike] = {
        "_type": STATEMENT,
        "subject": subject,
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }
    payload = canonical_bytes(statement)
    signature = {
        "keyid": fingerprint(key.public_key),
        "sig": base64.b64encode(key.sign_envelope(PAYLOAD_TYPE, payload)).decode(),
        "public_key": key.public_key.hex(),
    }
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [signature],
    }
    return (json.dumps(envelope, indent=2) + "\n").encode()


def verify_attestation(data: bytes, predicate_type: str, signer: str | None = None) -> Attested:
    """Check an envelope's signature and form; whether the files are those is the caller's to see.

    Args:
        predicate_type: that it must be of. signer: fingerprint that the key must have, obtained
            out of band; None accepts any key, which `Attested.signer` names.

    Raises:
        AttestationError: not an envelope, another type, a wrong signature or signer.

    """
    try:
        envelope = _Envelope.model_validate_json(data)
        payload = base64.b64decode(envelope.payload, validate=True)
        signature = base64.b64decode(envelope.signatures[0].sig, validate=True)
    except (ValidationError, binascii.Error) as error:
        raise AttestationError(
            "Expected a DSSE envelope with one Ed25519 signature, got another file. Take the "
            "attestation from where the artefact was published."
        ) from error
    public_key = bytes.fromhex(envelope.signatures[0].public_key)
    found = fingerprint(public_key)
    said = envelope.signatures[0].keyid
    if said != found or signer not in (None, found):
        raise AttestationError(
            f"Expected a signature by {signer or said}, got one by {found}. "
            "Compare fingerprints with the signer, out of band."
        )
    try:
        signed = pre_authentication(PAYLOAD_TYPE, payload)
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except (InvalidSignature, ValueError) as error:
        raise AttestationError(
            f"Expected a statement that {found} signed, got a changed one. Take the attestation "
            "from where the artefact was published."
        ) from error
    return _attested(payload, predicate_type, found)


def _attested(payload: bytes, predicate_type: str, signer: str) -> Attested:
    try:
        statement = _Statement.model_validate_json(payload)
    except ValidationError as error:
        raise AttestationError(
            "Expected an in-toto statement v1 in the envelope, got another payload. Ask the signer."
        ) from error
    if statement.predicate_type != predicate_type:
        raise AttestationError(
            f"Expected a statement of type {predicate_type}, got {statement.predicate_type}. It is "
            "about something else."
        )
    files = {each.name: each.digest["sha256"] for each in statement.subject}
    return Attested(signer, files, statement.predicate)
