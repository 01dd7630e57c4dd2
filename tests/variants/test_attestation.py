"""In-toto statements in DSSE envelopes: the specification's vector, and every way to forge one."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.attestation import AttestationError, attest, verify_attestation
from privacy.identity import IdentityKey, SignatureError, Signed, fingerprint, verify_signed
from privacy.identity import pre_authentication as pae

KEY = IdentityKey.from_bytes(bytes(range(32)))
OTHER = IdentityKey.from_bytes(bytes(32))
FILES = {"b.gguf": "22" * 32, "a.json": "11" * 32}
KIND = "urn:test:v1"


def envelope(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(attest(KEY, FILES, KIND, {"size": 3}))
    return {**found, **changes}


def test_what_is_signed_is_the_specifications_example() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, test vector
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected


def test_an_envelope_as_another_implementation_reads_it() -> None:
    found = envelope()
    payload = base64.b64decode(found["payload"])
    signature = base64.b64decode(found["signatures"][0]["sig"])
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
    Ed25519PublicKey.from_public_bytes(key.public_bytes_raw()).verify(
        signature, b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload
    )
    assert json.loads(payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": "a.json", "digest": {"sha256": "11" * 32}},
            {"name": "b.gguf", "digest": {"sha256": "22" * 32}},
        ],
        "predicateType": KIND,
        "predicate": {"size": 3},
    }


def test_an_attestation_says_who_vouches_for_what() -> None:
    found = verify_attestation(attest(KEY, FILES, KIND, {"size": 3}), KIND)
    assert (found.signer, dict(found.files)) == (fingerprint(KEY.public_key), FILES)
    assert found.predicate == {"size": 3}
    verify_attestation(attest(KEY, FILES, KIND, {}), KIND, fingerprint(KEY.public_key))


def test_another_signer_is_refused() -> None:
    wanted = fingerprint(KEY.public_key)
    with pytest.raises(AttestationError, match=f"signature by {wanted}"):
        verify_attestation(attest(OTHER, FILES, KIND, {}), KIND, wanted)
    theirs = envelope()["signatures"][0] | {"public_key": OTHER.public_key.hex()}
    with pytest.raises(AttestationError, match="Compare fingerprints"):
        verify_attestation(json.dumps(envelope(signatures=[theirs])).encode(), KIND)


def test_a_changed_statement_is_refused() -> None:
    payload = base64.b64decode(envelope()["payload"]).replace(b"11", b"33")
    changed = envelope(payload=base64.b64encode(payload).decode())
    with pytest.raises(AttestationError, match="changed one"):
        verify_attestation(json.dumps(changed).encode(), KIND)
    theirs = envelope()["signatures"][0]
    stolen = json.loads(attest(OTHER, FILES, KIND, {}))["signatures"][0]["sig"]
    mixed = json.dumps(envelope(signatures=[{**theirs, "sig": stolen}])).encode()
    with pytest.raises(AttestationError, match="changed one"):
        verify_attestation(mixed, KIND)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", json.dumps(envelope(payload="!!")).encode(),
     json.dumps(envelope(signatures=[])).encode(),
     json.dumps(envelope(payloadType="text/plain")).encode()],
)  # fmt: skip
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(AttestationError, match="DSSE envelope"):
        verify_attestation(data, KIND)


def test_another_kind_of_statement_is_refused() -> None:
    with pytest.raises(AttestationError, match="about something else"):
        verify_attestation(attest(KEY, FILES, "urn:other:v1", {}), KIND)


def test_an_envelopes_signature_is_no_domains() -> None:
    payload = b"arion/v1/plan\0x"
    signature = KEY.sign_envelope("t", payload)
    with pytest.raises(SignatureError):
        verify_signed(KEY.public_key, "plan", Signed(b"x", signature))
