"""Identity keys: files, domains, fingerprints, and Wycheproof's Ed25519 vectors."""

import json
from pathlib import Path

import pytest

from privacy.identity import (
    IdentityError,
    IdentityKey,
    SignatureError,
    Signed,
    fingerprint,
    verify_signed,
)


def test_a_signature_belongs_to_one_domain_key_and_payload() -> None:
    key = IdentityKey.generate()
    signed = key.sign("plan", b"payload")
    assert verify_signed(key.public_key, "plan", signed) == b"payload"
    for public_key, domain, candidate in (
        (key.public_key, "header", signed),
        (IdentityKey.generate().public_key, "plan", signed),
        (key.public_key, "plan", Signed(b"payloae", signed.signature)),
        (key.public_key, "plan", Signed(b"payload", signed.signature + b"\0")),
    ):
        with pytest.raises(SignatureError, match="Expected a"):
            verify_signed(public_key, domain, candidate)


@pytest.mark.parametrize("domain", ["", "Plan", "plan\0", "plan\n", "a" * 33, "9"])
def test_domains_hold_no_separator(domain: str) -> None:
    with pytest.raises(SignatureError, match="domain"):
        IdentityKey.generate().sign(domain, b"")


def test_a_saved_key_loads_and_is_never_overwritten(tmp_path: Path) -> None:
    path, key = tmp_path / "identity.key", IdentityKey.generate()
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert IdentityKey.load(path).public_key == key.public_key
    with pytest.raises(IdentityError, match="File exists"):
        IdentityKey.generate().save(path)
    assert IdentityKey.load(path).public_key == key.public_key


def test_a_key_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    IdentityKey.generate().save(path)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match=r"0600.*got 0640"):
        IdentityKey.load(path)


def test_a_missing_or_short_key_file(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="No such file"):
        IdentityKey.load(tmp_path / "none.key")
    with pytest.raises(IdentityError, match="32 bytes"):
        IdentityKey.from_bytes(bytes(31))


def test_the_fingerprint_keeps_all_of_the_digest() -> None:
    text = fingerprint(bytes(32))
    assert text.startswith("arion:66687aad-f862bd77-")
    assert len(text.removeprefix("arion:").replace("-", "")) == 64
    with pytest.raises(SignatureError, match="32 bytes"):
        fingerprint(bytes(33))


def test_wycheproof_ed25519(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The vectors sign bare messages; the prefix of a domain is taken away for this test only.
    monkeypatch.setattr("privacy.identity._signed_bytes", lambda _domain, payload: payload)
    vectors = json.loads((shared_dir / "vectors/wycheproof/ed25519_test.json").read_text())
    checked = 0
    for group in vectors["testGroups"]:
        public_key = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            signed = Signed(bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"]))
            try:
                valid = verify_signed(public_key, "plan", signed) == signed.payload
            except SignatureError:
                valid = False
            assert valid == (case["result"] == "valid"), case["tcId"]
            checked += 1
    assert checked > 100
