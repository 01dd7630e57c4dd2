"""Sealed packets: shares of a member's seeds, one packet for each member of the committee.

A packet holds the receiver's share of the sender's own seed b_u, then those of its seeds s_uv with
its neighbours v in order of names.
"""

from collections.abc import Iterable, Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.ledger.merkle import MerkleTree, ProofError, leaf_hash, verify_inclusion
from privacy.secagg.graph import Group
from privacy.secagg.header import Header
from privacy.secagg.kdf import encode_parts, expand
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.shamir import SHARE_BYTES, split
from protos.messages import ProvenPacket

# Every packet has a key of its own, used for one message, so the nonce may be constant.
_NONCE = bytes(12)


def seal_packets(
    pairwise: PairwiseKeys,
    committee: Sequence[str],
    seeds: Iterable[bytes],
    quorum: int,
    upload_digest: bytes,
) -> dict[str, bytes]:
    """Share seeds among the committee.

    Args:
        pairwise: the sender's keys.
        committee: receivers, sorted; a share's point is its receiver's place, from 1.
        seeds: b_u, then s_uv in order of names, 32 bytes each.
        quorum: shares that recover a seed.
        upload_digest: of the upload; every packet key derives from it.

    Returns:
        Sealed packet by receiver.

    """
    shared = [split(seed, quorum, len(committee)) for seed in seeds]
    packets = {}
    for place, receiver in enumerate(committee):
        plain = b"".join(shares[place] for shares in shared)
        key, associated = packet_key(pairwise, pairwise.own, receiver, upload_digest)
        packets[receiver] = AESGCM(key).encrypt(_NONCE, plain, associated)
    return packets


def open_packet(
    pairwise: PairwiseKeys, header: Header, sealed: bytes, group: Group
) -> tuple[bytes, dict[str, bytes]] | None:
    """Open what the sender of a header sealed for us.

    Returns:
        Our share of its own seed, and of those with its neighbours by name; None where it was
        sealed wrongly: one bad sender must not stop a round that others' packets can finish.

    """
    key, associated = packet_key(pairwise, header.node, pairwise.own, header.upload_digest())
    try:
        plain = AESGCM(key).decrypt(_NONCE, sealed, associated)
    except InvalidTag:
        return None
    peers = sorted(group.neighbours[header.node])
    if len(plain) != SHARE_BYTES * (1 + len(peers)):
        return None
    shares = [plain[at : at + SHARE_BYTES] for at in range(0, len(plain), SHARE_BYTES)]
    return shares[0], dict(zip(peers, shares[1:], strict=True))


def packet_key(
    pairwise: PairwiseKeys, sender: str, receiver: str, upload_digest: bytes
) -> tuple[bytes, bytes]:
    """Return key and associated data of one packet; they name its direction and its upload."""
    names = sender.encode(), receiver.encode()
    peer = receiver if sender == pairwise.own else sender
    key = expand(pairwise.prk("packet", peer), b"packet", upload_digest, *names)
    return key, encode_parts(b"packet", upload_digest, *names)


def packet_tree(packets: Mapping[str, bytes]) -> MerkleTree:
    """Return the tree over the sealed packets of an upload, in the order of their receivers."""
    tree = MerkleTree()
    for receiver in sorted(packets):
        tree.append(_packet_leaf(receiver, packets[receiver]))
    return tree


def is_packet_of(
    header: Header, receiver: str, committee: Sequence[str], packet: ProvenPacket
) -> bool:
    """Tell whether a packet is the one that the header's sender sealed for this receiver."""
    try:
        verify_inclusion(
            committee.index(receiver),
            len(committee),
            _packet_leaf(receiver, packet.sealed),
            packet.proof,
            bytes.fromhex(header.packets_root),
        )
    except ProofError:
        return False
    return True


def _packet_leaf(receiver: str, sealed: bytes) -> bytes:
    return leaf_hash(encode_parts(receiver.encode(), sealed))
