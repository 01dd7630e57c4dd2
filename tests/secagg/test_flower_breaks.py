"""Two attacks that open a member's vector under Flower 1.41's SecAgg+, tried on ours.

A coordinator asks for both shares of one member; and it searches a mask's seed of 32 bits. Each
test has a control: with what the attack failed to get, or against Flower's own generator, the same
steps give the vector. One member of four conspires with the coordinator and hands over its keys.

Symbols: x the victim's vector, b_u its own seed, s_uv the seeds that it shares.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.header import Header, SecAggRefused, mask_key, mask_sign
from privacy.secagg.masks import Mask, apply_masks
from privacy.secagg.packets import open_packet
from privacy.secagg.recovery import SeedRecovery
from privacy.secagg.shamir import reduce_to_field
from protos.messages import UnmaskReply
from tests.secagg.test_attacks import forge, headers_of

VICTIM, COLLUDER = "node-1", "node-3"
LENGTH = 4_096


def long_plan(federation: Any) -> Any:
    trainable = (("lora.a", LENGTH - 1), ("lora.b", 1))
    return federation.plan(vector_length=LENGTH, trainable=trainable)


def seed_with(federation: Any, plan: Any, peer: str) -> bytes:
    """s_uv of the victim and a peer, from the peer's side."""
    return reduce_to_field(federation.nodes[peer].pairwise.round_seed(VICTIM, plan.digest()))


def unmasked(plan: Any, words: Any, own: bytes | None, pairs: dict[str, bytes]) -> Any:
    """The victim's words without the masks that the attacker can make."""
    left = words.copy()
    masks = [Mask(mask_key(own, plan.digest()), -1)] if own else []
    masks += [
        Mask(mask_key(seed, plan.digest()), mask_sign(peer, VICTIM)) for peer, seed in pairs.items()
    ]
    apply_masks(left, masks)
    return left


def assert_uniform(left: Any, x: Any) -> None:
    """What is left of x after the attack: differences fall everywhere in the ring alike."""
    counts, _ = np.histogram(left - x, 16, (0, 2**16))
    assert (left == x).mean() < 0.01
    assert ((counts - LENGTH / 16) ** 2 / (LENGTH / 16)).sum() < 60  # chi-squared, 15 degrees


class Attacker:
    """A coordinator with a colluder's keys: asks, and keeps every share that it is given."""

    def __init__(self, federation: Any, plan: Any) -> None:
        self.federation, self.plan = federation, plan
        self.total = federation.collect(plan)
        self.group = self.total.group
        self.replies: dict[str, dict[tuple[str, str], bytes]] = {}

    def ask(self, listed: Iterable[str]) -> list[str]:
        """Have a set of survivors signed and unmasked; return who gave shares."""
        plan, nodes, headers = self.plan, self.federation.nodes, headers_of(self.total, listed)
        names = [name for name in self.total.committee if name in listed]
        signatures = list(forge(self.federation, plan, headers, [COLLUDER]))
        for name in (name for name in names if name != COLLUDER):
            try:
                signatures.append(nodes[name].sign_survivors(plan, headers))
            except SecAggRefused:
                continue
        given = []
        for name in (name for name in names if name != COLLUDER):
            request = self.request(name, headers, sorted(signatures, key=lambda each: each.node))
            try:
                self.keep(nodes[name].unmask(plan, request))
            except SecAggRefused:
                continue
            given.append(name)
        return given

    def request(self, name: str, headers: Any, signatures: Any) -> Any:
        other = StreamingSum(self.plan, self.federation.roster)
        other._uploads = {
            node: upload for node, upload in self.total._uploads.items() if upload.header in headers
        }
        other._trees, other._certificate = self.total._trees, tuple(signatures)
        other.close()
        return other.unmask_request(name)

    def keep(self, reply: UnmaskReply) -> None:
        shares = self.replies.setdefault(reply.node, {})
        for entry in reply.shares:
            shares[entry.survivor, entry.survivor] = entry.own_share
            for edge in entry.edge_shares:
                shares[entry.survivor, edge.dropped] = edge.share

    def open_own_packets(self) -> None:
        """The colluder opens all that was sealed for it, whatever the set."""
        pairwise, place = (
            self.federation.nodes[COLLUDER].pairwise,
            self.group.committee.index(COLLUDER),
        )
        shares = self.replies.setdefault(COLLUDER, {})
        for name, upload in self.total._uploads.items():
            header = Header.model_validate_json(upload.header.payload)
            opened = open_packet(pairwise, header, upload.packets[place].sealed, self.group)
            assert opened is not None
            shares[name, name] = opened[0]
            shares.update({(name, peer): share for peer, share in opened[1].items()})

    def recovered(self) -> tuple[bytes | None, dict[str, bytes]]:
        """b_u and the s_uv that can be had from all shares, and from the colluder's keys."""
        recovery = SeedRecovery(self.plan, self.group, self.replies)
        upload = self.total._uploads[VICTIM]
        pairs = {COLLUDER: seed_with(self.federation, self.plan, COLLUDER)}
        for edge in upload.edge_commitments:
            for dealer, dropped in ((VICTIM, edge.peer), (edge.peer, VICTIM)):
                try:
                    pairs[edge.peer] = recovery.edge_seed(dealer, dropped, edge.commitment)
                except ValueError:
                    continue
        try:
            return recovery.own_seed(VICTIM, upload.own_commitment), pairs
        except ValueError:
            return None, pairs


@pytest.fixture
def attacker(federation: Any, monkeypatch: pytest.MonkeyPatch) -> Attacker:
    plan = long_plan(federation)
    federation.uploaded = {}
    upload = type(federation).upload

    def kept(self: Any, name: str, plan: Any) -> Any:
        message, words = upload(self, name, plan)
        self.uploaded[name] = words
        return message, words

    monkeypatch.setattr(type(federation), "upload", kept)
    attacker = Attacker(federation, plan)
    attacker.open_own_packets()
    return attacker


@pytest.mark.parametrize("first", ["everyone", "without the victim"])
def test_both_shares_of_one_member(federation: Any, attacker: Attacker, first: str) -> None:
    """Whichever set is asked about first, the shares of the other kind are refused."""
    everyone = federation.names
    fewer = tuple(name for name in everyone if name != VICTIM)
    sets = (everyone, fewer) if first == "everyone" else (fewer, everyone)
    assert [bool(attacker.ask(each)) for each in sets] == [True, False]
    own, pairs = attacker.recovered()
    x, words = federation.vector(VICTIM, attacker.plan), federation.uploaded[VICTIM]
    assert (own is not None) == (first == "everyone")
    assert set(pairs) == ({COLLUDER} if first == "everyone" else {*everyone} - {VICTIM})
    assert_uniform(unmasked(attacker.plan, words, own, pairs), x)


def test_the_attack_would_succeed_with_both(federation: Any, attacker: Attacker) -> None:
    """The control: with the seeds that the members kept, the same steps give the vector."""
    attacker.ask(federation.names)
    own, pairs = attacker.recovered()
    x, words = federation.vector(VICTIM, attacker.plan), federation.uploaded[VICTIM]
    pairs |= {peer: seed_with(federation, attacker.plan, peer) for peer in ("node-0", "node-2")}
    np.testing.assert_array_equal(unmasked(attacker.plan, words, own, pairs), x)


def folded(key: bytes) -> bytes:
    """The 32 bits that Flower keeps of a key, as its generator takes them."""
    words = np.frombuffer(key, "<u4")
    return int(np.bitwise_xor.reduce(words)).to_bytes(4, "little")


def generated(seed: bytes) -> Any:
    return pseudo_rand_gen(seed, 2**16, [(LENGTH,)])[0].astype("<u2")


def test_a_seed_of_32_bits_is_no_seed_of_ours(federation: Any) -> None:
    """Whoever finds those 32 bits of a key has Flower's mask whole, and nothing of ours."""
    plan = long_plan(federation)
    key = mask_key(seed_with(federation, plan, "node-0"), plan.digest())
    np.testing.assert_array_equal(generated(key), generated(folded(key)))  # the break
    ours = np.zeros(LENGTH, "<u2")
    apply_masks(ours, [Mask(key, 1)])
    guessed = [generated(folded(key)), np.zeros(LENGTH, "<u2")]
    parts = [folded(key), *(key[at : at + 4] for at in range(0, 32, 4))]
    for short in (each for x in parts for each in (x + bytes(28), bytes(28) + x, x * 8)):
        guess = np.zeros(LENGTH, "<u2")
        apply_masks(guess, [Mask(short, 1)])
        guessed.append(guess)
    for guess in guessed:
        assert (guess == ours).mean() < 0.01


def rank(numbers: Iterable[int]) -> int:
    """Rank over GF(2): bits that are copies, folds or constants of others do not count."""
    basis: dict[int, int] = {}
    for number in numbers:
        left = number
        while left and left.bit_length() in basis:
            left ^= basis[left.bit_length()]
        if left:
            basis[left.bit_length()] = left
    return len(basis)


def test_every_bit_of_a_key_counts(federation: Any) -> None:
    """256 independent bits vary from round to round, and a mask is another one if any of them is.

    Of Flower's keys, as its generator takes them, 32 bits are left.
    """
    keys = [
        mask_key(
            seed_with(federation, federation.plan(number), "node-0"), number.to_bytes(32, "big")
        )
        for number in range(1, 331)
    ]
    assert rank(int.from_bytes(key, "big") for key in keys) == 256
    assert rank(int.from_bytes(folded(key), "big") for key in keys) == 32
    masks = set()
    for bit in range(256):
        block = np.zeros(8, "<u2")
        key = int.from_bytes(keys[0], "big") ^ 1 << bit
        apply_masks(block, [Mask(key.to_bytes(32, "big"), 1)])
        masks.add(block.tobytes())
    assert len(masks) == 256
