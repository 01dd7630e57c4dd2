"""Published vectors, through the product's own functions: RFC 5869, RFC 7748, BLAKE3, Wycheproof.

SP 800-38A is in test_masks.py, Ed25519 in test_identity.py, RFC 6962 and RFC 8785 in tests/ledger.
The shared folder's SLIP-0039 vectors are for GF(256), which our shares do not use.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.secagg import kdf, packets
from privacy.secagg.graph import Group
from privacy.secagg.header import digest_words
from privacy.secagg.kdf import hkdf
from privacy.secagg.keys import EpochKeys, RosterError, encapsulate

RFC_5869 = [
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c",
    ),
    (
        "0b" * 22,
        "",
        "",
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d",
    ),
]
"""Appendices A.1 to A.3, all of SHA-256: IKM, salt, info, PRK, the first 32 bytes of OKM."""

RFC_7748 = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]
"""Section 5.2: scalar, u-coordinate, result."""


@pytest.mark.parametrize(("secret", "salt", "info", "prk", "okm"), RFC_5869)
def test_rfc_5869(
    secret: str, salt: str, info: str, prk: str, okm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hkdf(*(bytes.fromhex(value) for value in (secret, salt, info))).hex() == okm
    # The vectors' info is bare; the lengths that `expand` writes before parts are taken away here.
    monkeypatch.setattr(kdf, "encode_parts", lambda *parts: b"".join(parts))
    assert kdf.expand(bytes.fromhex(prk), bytes.fromhex(info)).hex() == okm


def exchange(private: bytes, public: bytes) -> bytes:
    """X25519 as members do it, with either of their keys."""
    keys = EpochKeys.from_bytes(private + private + bytes(32 + 64))
    secret = keys.exchange("mask", public)
    assert keys.exchange("packet", public) == secret
    return secret


@pytest.mark.parametrize(("scalar", "point", "result"), RFC_7748)
def test_rfc_7748_section_5_2(scalar: str, point: str, result: str) -> None:
    assert exchange(bytes.fromhex(scalar), bytes.fromhex(point)).hex() == result


def test_rfc_7748_section_5_2_iterated() -> None:
    scalar = point = bytes([9]) + bytes(31)
    for turn in range(1, 1001):
        scalar, point = exchange(scalar, point), scalar
        if turn == 1:
            first = scalar.hex()
    assert first == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert scalar.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_rfc_7748_section_6_1(federation: Any) -> None:
    """The public keys as bundles show them, and the secret that both ends come to."""
    private = {
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a": (
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        ),
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb": (
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
        ),
    }
    for raw, public in private.items():
        keys = EpochKeys.from_bytes(bytes.fromhex(raw) * 2 + bytes(96))
        shown = keys.bundle("hospitals", 1, "node-0", federation.identities["node-0"])
        assert json.loads(shown.payload)["mask_key"] == public
    (alice, alice_public), (bob, bob_public) = private.items()
    for own, peer in ((alice, bob_public), (bob, alice_public)):
        assert exchange(bytes.fromhex(own), bytes.fromhex(peer)).hex() == (
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
        )


def cases(shared_dir: Path, name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    vectors = json.loads((shared_dir / f"vectors/wycheproof/{name}_test.json").read_text())
    for group in vectors["testGroups"]:
        for case in group["tests"]:
            yield (
                group,
                {
                    key: bytes.fromhex(value)
                    if isinstance(value, str) and key not in ("comment", "result")
                    else value
                    for key, value in case.items()
                },
            )


def test_wycheproof_x25519(shared_dir: Path) -> None:
    refused = 0
    for _, case in cases(shared_dir, "x25519"):
        private = X25519PrivateKey.from_private_bytes(case["private"])
        try:
            shared = EpochKeys(private, private, bytes(32), bytes(64)).exchange(
                "mask", case["public"]
            )
        except RosterError:
            assert case["shared"] == bytes(32), case["tcId"]
            refused += 1
        else:
            assert shared == case["shared"], case["tcId"]
    assert refused > 10


def test_wycheproof_hkdf(shared_dir: Path) -> None:
    checked = 0
    for _, case in cases(shared_dir, "hkdf_sha256"):
        if case["result"] == "valid" and case["size"] >= 32:
            assert hkdf(case["ikm"], case["salt"], case["info"]) == case["okm"][:32], case["tcId"]
            checked += 1
    assert checked > 20


def test_wycheproof_aes_gcm_as_packets_use_it(shared_dir: Path) -> None:
    checked = 0
    for group, case in cases(shared_dir, "aes_gcm"):
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        cipher, sealed = AESGCM(case["key"]), case["ct"] + case["tag"]
        if case["result"] == "valid":
            assert cipher.decrypt(case["iv"], sealed, case["aad"]) == case["msg"]
        else:
            with pytest.raises(InvalidTag):
                cipher.decrypt(case["iv"], sealed, case["aad"])
        checked += 1
    assert checked > 20


def test_wycheproof_aes_gcm_through_packets(
    shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of whole shares; key, nonce and associated data are the vectors' for this test."""
    checked = 0
    for group, case in cases(shared_dir, "aes_gcm"):
        shares = len(case["msg"]) // 32
        sizes = (group["keySize"], group["ivSize"], group["tagSize"], len(case["msg"]) % 32)
        if sizes != (256, 96, 128, 0) or shares == 0 or case["result"] != "valid":
            continue
        monkeypatch.setattr(packets, "_NONCE", case["iv"])
        monkeypatch.setattr(packets, "packet_key", lambda *_, c=case: (c["key"], c["aad"]))
        peers = frozenset(f"n{place}" for place in range(shares - 1))
        names = Group(("a",), ("a",), {"a": peers})
        header: Any = SimpleNamespace(node="a", upload_digest=bytes)
        pairwise: Any = SimpleNamespace(own="a")
        sealed = case["ct"] + case["tag"]
        own, edges = packets.open_packet(pairwise, header, sealed, names) or (b"", {})
        assert own + b"".join(edges[peer] for peer in sorted(peers)) == case["msg"]
        for place in (0, -1):
            spoilt = bytearray(sealed)
            spoilt[place] ^= 1
            assert packets.open_packet(pairwise, header, bytes(spoilt), names) is None
        checked += 1
    assert checked >= 4


def test_wycheproof_ml_kem_768(shared_dir: Path) -> None:
    """Keys from seeds, secrets from ciphertexts, and what is refused; then a secret of our own."""
    checked = {"valid": 0, "invalid": 0}
    for _, case in cases(shared_dir, "mlkem_768"):
        checked[case["result"]] += 1
        if case["result"] == "invalid":
            with pytest.raises(RosterError):
                kem_keys(case["seed"]).decapsulate(case["c"])
            continue
        keys = kem_keys(case["seed"])
        public = MLKEM768PrivateKey.from_seed_bytes(case["seed"]).public_key().public_bytes_raw()
        assert public == case.get("ek", public), case["tcId"]
        assert keys.decapsulate(case["c"]) == case["K"], case["tcId"]
        secret, ciphertext = encapsulate(public)
        assert keys.decapsulate(ciphertext) == secret, case["tcId"]
    assert min(checked.values()) > 20


def kem_keys(seed: bytes) -> EpochKeys:
    return EpochKeys.from_bytes(bytes([9]) * 96 + seed)


BLAKE3 = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    2048: "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a",
    5120: "9cadc15fed8b5d854562b26a9536d9707cadeda9b143978f319ab34230535833",
}
"""Digests by length of 0, 1, ... 250, 0, ...: test_vectors.json of the reference implementation."""


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("length", BLAKE3)
def test_words_are_digested_by_blake3(length: int, dtype: str) -> None:
    data = bytes(place % 251 for place in range(length))
    words = np.frombuffer(data, dtype)
    assert digest_words(words).hex() == BLAKE3[length]
    spread = np.stack([words, words], axis=1)[:, 0]
    assert digest_words(spread).hex() == BLAKE3[length]
