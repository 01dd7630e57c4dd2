"""A second implementation of docs/secure_aggregation.md, sections 5 to 7; see `reference`.

`transcript` computes everything that members and the coordinator send each other, from fixed keys,
nonces, seeds and coefficients.

Symbols as on the page: u, v members, r one of the committee.
"""

import hashlib
import json

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.secagg.reference import (
    Epoch,
    Json,
    attempt_seed,
    digest,
    draw,
    expand,
    field,
    parts,
    sign,
    signed,
)

P = 2**256 - 189


def keystream(key: bytes, first_block: int, size: int) -> bytes:
    counter = first_block.to_bytes(16, "big")
    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor().update(bytes(size))


def words_of(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def bytes_of(words: list[int], size: int) -> bytes:
    return b"".join(word.to_bytes(size, "little") for word in words)


def pack(words: list[int], ring_bits: int) -> bytes:
    whole = sum(word << (ring_bits * place) for place, word in enumerate(words))
    return whole.to_bytes(-(-len(words) * ring_bits // 8), "little")


def mask(
    words: list[int], masks: list[tuple[bytes, int]], size: int, first_block: int
) -> list[int]:
    """Add (key, sign) keystreams to words of `size` bytes."""
    result = list(words)
    for key, factor in masks:
        stream = words_of(keystream(key, first_block, len(words) * size), size)
        result = [x + factor * m for x, m in zip(result, stream, strict=True)]
    return [x % 2 ** (8 * size) for x in result]


def share(secret: bytes, coefficients: list[str], point: int) -> bytes:
    powers = [int.from_bytes(secret, "big"), *(int(each, 16) for each in coefficients)]
    return (sum(a * point**i for i, a in enumerate(powers)) % P).to_bytes(32, "big")


def interpolate(shares: dict[int, bytes]) -> bytes:
    """f(0) by Lagrange."""
    total = 0
    for x, value in shares.items():
        term = int.from_bytes(value, "big")
        for other in shares:
            if other != x:
                term = term * -other * pow(x - other, -1, P) % P
        total += term
    return (total % P).to_bytes(32, "big")


def merkle_root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    below = merkle_root(leaves[:split]) + merkle_root(leaves[split:])
    return hashlib.sha256(b"\x01" + below).digest()


class Attempt:
    """One attempt under a plan."""

    def __init__(self, epoch: Epoch) -> None:
        self.epoch, self.given = epoch, epoch.given
        self.payload = self.given["plan"].encode()
        self.plan = json.loads(self.payload)
        self.digest = hashlib.sha256(self.payload).digest()
        assert self.plan["roster_digest"] == epoch.roster.hex()
        assert self.plan["cohort"] == epoch.names
        self.seed = attempt_seed(epoch.graph_seed, self.plan["round"], self.plan["attempt"])
        self.groups = draw(
            self.seed, epoch.names, *(self.plan[x] for x in ("groups", "degree", "committee"))
        )
        self.ring_bits = self.plan["step"]["ring_bits"]
        self.size = 4 if self.ring_bits == 32 else 2

    def pair_seed(self, u: str, v: str) -> bytes:
        low, high = sorted((u, v))
        key = expand(self.epoch.prk("mask", u, v), "seed", self.digest, low, high)
        return (int.from_bytes(key, "big") % P).to_bytes(32, "big")

    def mask_key(self, seed: bytes) -> bytes:
        return expand(seed, "mask", self.digest)

    def commit_edge(self, seed: bytes, u: str, v: str) -> bytes:
        return expand(seed, "commit-edge", self.digest, *sorted((u, v)))

    def commit_own(self, seed: bytes, u: str) -> bytes:
        return expand(seed, "commit-own", self.digest, u)

    def upload(self, u: str, group: Json) -> Json:
        given, peers = self.given["uploads"][u], group["neighbours"][u]
        own = bytes.fromhex(given["own_seed"])
        edges = {v: self.pair_seed(u, v) for v in peers}
        masks = [(self.mask_key(own), 1)]
        masks += [(self.mask_key(seed), 1 if v > u else -1) for v, seed in edges.items()]
        words = [y % 2**self.ring_bits for y in mask(given["words"], masks, self.size, 0)]
        ones = [1] * (16 // self.size)
        commitments = {v: self.commit_edge(seed, u, v) for v, seed in edges.items()}
        own_commitment = self.commit_own(own, u)
        listed = [each for v in peers for each in (v, commitments[v])]
        words_digest = blake3(bytes_of(words, self.size)).digest()
        commitments_digest = digest("commitments", own_commitment, *listed)
        upload_digest = digest("upload", self.digest, words_digest, commitments_digest)
        packets = self.packets(u, group, [own, *edges.values()], upload_digest)
        root = merkle_root([parts(r, packets[r]) for r in group["committee"]])
        header = {
            "version": 1,
            "plan": self.digest.hex(),
            "node": u,
            "words": words_digest.hex(),
            "count": bytes_of(mask(ones, masks, self.size, 1 << 64), self.size).hex(),
            "commitments": commitments_digest.hex(),
            "packets_root": root.hex(),
        }
        result = {
            "masked": pack(words, self.ring_bits).hex(),
            "own_commitment": own_commitment.hex(),
            "edge_commitments": {v: commitments[v].hex() for v in peers},
            "upload_digest": upload_digest.hex(),
            "packets": {r: packet.hex() for r, packet in packets.items()},
            "header": signed(self.given["members"][u]["identity"], "header", header),
        }
        return {**result, "message": hashlib.sha256(upload_message(u, result)).hexdigest()}

    def packets(self, u: str, group: Json, secrets: list[bytes], about: bytes) -> dict[str, bytes]:
        coefficients = self.given["uploads"][u]["coefficients"]
        sealed = {}
        for place, r in enumerate(group["committee"], start=1):
            assert all(len(each) == self.plan["quorum"] - 1 for each in coefficients)
            shares = [
                share(secret, each, place)
                for secret, each in zip(secrets, coefficients, strict=True)
            ]
            named = "packet", about, u, r
            key = expand(self.epoch.prk("packet", u, r), *named)
            sealed[r] = AESGCM(key).encrypt(bytes(12), b"".join(shares), parts(*named))
        return sealed

    def open(self, group: Json, uploads: Json) -> Json:
        """Section 7: survivors, signatures, replies, and the sum from the replies."""
        survivors = [u for u in group["members"] if u in uploads]
        headers = [uploads[u]["header"] for u in survivors]
        named = [y for x in headers for y in (x["payload"], bytes.fromhex(x["signature"]))]
        chosen = digest("survivors", self.digest, *named)
        stand = {"version": 1, "plan": self.digest.hex(), "survivors": chosen.hex()}
        committee = [r for r in group["committee"] if r in uploads]
        identity = {r: self.given["members"][r]["identity"] for r in committee}
        shares = {r: self.shares(r, group, uploads, survivors) for r in committee}
        seeds = {
            about: interpolate(
                {
                    group["committee"].index(r) + 1: shares[r][about]
                    for r in committee[: self.plan["quorum"]]
                }
            )
            for about in shares[committee[0]]
        }
        return {
            "survivors": survivors,
            "digest": chosen.hex(),
            "signatures": {
                r: signed(identity[r], "survivors", stand)["signature"] for r in committee
            },
            "replies": {
                r: reply_message(r, self.digest, chosen, shares[r]).hex() for r in committee
            },
            "sum": self.unmasked(uploads, survivors, seeds),
        }

    def shares(
        self, r: str, group: Json, uploads: Json, survivors: list[str]
    ) -> dict[tuple[str, str], bytes]:
        """Shares by (u, u) for b_u, and by (u, v) for s_uv of the v that are not in the sum."""
        found = {}
        for u in survivors:
            about = bytes.fromhex(uploads[u]["upload_digest"])
            named = "packet", about, u, r
            key = expand(self.epoch.prk("packet", u, r), *named)
            sealed = bytes.fromhex(uploads[u]["packets"][r])
            plain = AESGCM(key).decrypt(bytes(12), sealed, parts(*named))
            for place, v in enumerate([u, *group["neighbours"][u]]):
                if v == u or v not in survivors:
                    found[u, v] = plain[32 * place : 32 * place + 32]
        return found

    def unmasked(
        self, uploads: Json, survivors: list[str], seeds: dict[tuple[str, str], bytes]
    ) -> list[int]:
        total = [0] * self.plan["vector_length"]
        count = [0] * (16 // self.size)
        for u in survivors:
            whole = int.from_bytes(bytes.fromhex(uploads[u]["masked"]), "little")
            words = [
                whole >> (self.ring_bits * place) & 2**self.ring_bits - 1
                for place in range(len(total))
            ]
            total = [x + y for x, y in zip(total, words, strict=True)]
            block = bytes.fromhex(json.loads(uploads[u]["header"]["payload"])["count"])
            count = [x + y for x, y in zip(count, words_of(block, self.size), strict=True)]
        masks = []
        for (u, v), seed in seeds.items():
            commitment = uploads[u]["own_commitment"]
            if u == v:
                assert self.commit_own(seed, u).hex() == commitment
            else:
                assert self.commit_edge(seed, u, v).hex() == uploads[u]["edge_commitments"][v]
            masks.append((self.mask_key(seed), -1 if u == v or v > u else 1))
        assert mask(count, masks, self.size, 1 << 64) == [len(survivors)] * len(count)
        return [x % 2**self.ring_bits for x in mask(total, masks, self.size, 0)]


def signed_message(header: Json) -> bytes:
    return field(1, header["payload"]) + field(2, bytes.fromhex(header["signature"]))


def upload_message(u: str, upload: Json) -> bytes:
    words = json.loads(upload["header"]["payload"])["words"]
    message = field(1, u) + field(2, signed_message(upload["header"]))
    message += field(3, bytes.fromhex(words)) + field(4, bytes.fromhex(upload["own_commitment"]))
    for v, commitment in upload["edge_commitments"].items():
        message += field(5, field(1, v) + field(2, bytes.fromhex(commitment)))
    for r, packet in upload["packets"].items():
        message += field(6, field(1, r) + field(2, bytes.fromhex(packet)))
    return message


def reply_message(
    r: str, plan: bytes, chosen: bytes, shares: dict[tuple[str, str], bytes]
) -> bytes:
    message = field(1, r) + field(2, plan) + field(3, chosen)
    for u in sorted({u for u, _ in shares}):
        edges = sorted(v for w, v in shares if w == u and v != u)
        entry = field(1, u) + field(2, shares[u, u])
        for v in edges:
            entry += field(3, field(1, v) + field(2, shares[u, v]))
        message += field(4, entry)
    return message


def transcript(given: Json) -> Json:
    """Everything that follows from fixed keys, nonces, seeds, coefficients, words and a plan."""
    epoch = Epoch(given)
    attempt = Attempt(epoch)
    identity = {name: given["members"][name]["identity"] for name in epoch.names}
    uploads = {
        u: attempt.upload(u, group)
        for group in attempt.groups
        for u in group["members"]
        if u in given["uploads"]
    }
    return {
        "bundles": {
            each["node"]: signed(identity[each["node"]], "bundle", each) for each in epoch.bundles
        },
        "roster": epoch.roster.hex(),
        "reveals": {u: signed(identity[u], "reveal", epoch.reveal(u)) for u in epoch.names},
        "graph_seed": epoch.graph_seed.hex(),
        "plan": {
            "digest": attempt.digest.hex(),
            "signature": sign(given["coordinator"], "plan", attempt.payload),
        },
        "seed": attempt.seed.hex(),
        "groups": attempt.groups,
        "pairs": {
            f"{u} {v}": {
                "mask": epoch.prk("mask", u, v).hex(),
                "packet": epoch.prk("packet", u, v).hex(),
                "seed": attempt.pair_seed(u, v).hex(),
            }
            for group in attempt.groups
            for u in group["members"]
            for v in group["neighbours"][u]
            if u < v
        },
        "uploads": uploads,
        "sums": [attempt.open(group, uploads) for group in attempt.groups],
    }
