"""A second implementation of docs/secure_aggregation.md, sections 1 to 4; see `reference_attempt`.

It was written from that page alone and imports nothing of the product: hashes and HMAC of the
standard library, and the primitives of `cryptography`. It is slow and plain on purpose.
"""

import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

Json = dict[str, Any]


# Section 1


def parts(*values: bytes | str) -> bytes:
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    return b"".join(len(value).to_bytes(4, "big") + value for value in encoded)


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def digest(*values: bytes | str) -> bytes:
    return hashlib.sha256(parts(*values)).digest()


def hmac256(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return hmac256(hmac256(salt, secret), info + b"\x01")


def expand(key: bytes, *values: bytes | str) -> bytes:
    return hmac256(key, parts(*values) + b"\x01")


def canonical(value: Any) -> bytes:
    """RFC 8785 for integers, null, lists, and objects and strings in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sign(key: str, domain: str, payload: bytes) -> str:
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
    return private.sign(b"arion/v1/" + domain.encode() + b"\0" + payload).hex()


def signed(key: str, domain: str, value: Any) -> Json:
    payload = canonical(value)
    return {"payload": payload.decode(), "signature": sign(key, domain, payload)}


def field(number: int, value: bytes | str) -> bytes:
    """One length-delimited field of protobuf; empty ones are left out."""
    data = value.encode() if isinstance(value, str) else value
    if not data:
        return b""
    size, rest = b"", len(data)
    while rest > 127:
        size += bytes([rest & 127 | 128])
        rest >>= 7
    return bytes([number << 3 | 2]) + size + bytes([rest]) + data


# Section 2


def public(private: str) -> str:
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    return key.public_key().public_bytes_raw().hex()


def bundle(given: Json, name: str) -> Json:
    member = given["members"][name]
    kem = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(member["kem"])).public_key()
    named = given["federation"], u64(given["epoch"]), name
    return {
        "version": 1,
        "federation": given["federation"],
        "epoch": given["epoch"],
        "node": name,
        "mask_key": public(member["mask"]),
        "encryption_key": public(member["packet"]),
        "nonce_commitment": digest("nonce", bytes.fromhex(member["nonce"]), *named).hex(),
        "kem_key": kem.public_bytes_raw().hex() if given["ciphertexts"] else None,
    }


class Epoch:
    """What all members know after the nonces, and every member's secrets."""

    def __init__(self, given: Json) -> None:
        self.given, self.names = given, sorted(given["members"])
        self.bundles = [bundle(given, name) for name in self.names]
        self.roster = hashlib.sha256(canonical(self.bundles)).digest()
        nonces = [bytes.fromhex(given["members"][name]["nonce"]) for name in self.names]
        self.graph_seed = digest("graph-seed", self.roster, *nonces)

    def reveal(self, name: str) -> Json:
        return {
            "version": 1,
            "node": name,
            "roster": self.roster.hex(),
            "nonce": self.given["members"][name]["nonce"],
            "ciphertexts": self.given["ciphertexts"].get(name, {}),
        }

    def prk(self, kind: str, first: str, second: str) -> bytes:
        low, high = sorted((first, second))
        members = self.given["members"]
        own = X25519PrivateKey.from_private_bytes(bytes.fromhex(members[high][kind]))
        peer = X25519PublicKey.from_public_bytes(bytes.fromhex(public(members[low][kind])))
        secret = own.exchange(peer)
        if self.given["ciphertexts"]:
            seed = bytes.fromhex(members[high]["kem"])
            if low == high:
                secret += expand(seed, "own")
            else:
                sealed = bytes.fromhex(self.given["ciphertexts"][low][high])
                secret += MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(sealed)
        return hkdf(secret, self.roster, parts(kind, low, high))


# Section 4


def attempt_seed(graph_seed: bytes, round_number: int, attempt: int) -> bytes:
    return digest("graph", graph_seed, u64(round_number), u64(attempt))


def draw(seed: bytes, names: list[str], groups: int, degree: int, committee: int) -> list[Json]:
    ranked = sorted(names)
    if groups > 1:
        ranked.sort(key=lambda name: digest("group", seed, name))
    return [
        draw_group(seed, sorted(ranked[first::groups]), degree, committee)
        for first in range(groups)
    ]


def draw_group(seed: bytes, members: list[str], degree: int, committee: int) -> Json:
    n = len(members)
    below = 2**64 * degree // (n - 1)

    def joined(u: str, v: str) -> bool:
        low, high = sorted((u, v))
        drawn = int.from_bytes(digest("edge", seed, low, high)[:8], "big")
        return u != v and (degree == n - 1 or drawn < below)

    ranked = sorted(members, key=lambda name: digest("committee", seed, name))
    return {
        "members": members,
        "committee": members if committee == n else sorted(ranked[:committee]),
        "neighbours": {u: [v for v in members if joined(u, v)] for u in members},
    }
