"""What the coordinator checks of an upload before it adds the words to a sum."""

from collections.abc import Mapping
from typing import NoReturn

from privacy.ledger.merkle import MerkleTree
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.graph import Group
from privacy.secagg.header import (
    Header,
    SecAggRefused,
    commitments_digest,
    digest_words,
    verify_header,
)
from privacy.secagg.masks import Words
from privacy.secagg.packets import packet_tree
from privacy.secagg.roster import Roster
from protos.messages import Upload


def check_upload(
    upload: Upload, words: Words, plan_digest: bytes, roster: Roster, group: Group
) -> tuple[Header, MerkleTree]:
    """Hold an upload against its header.

    Returns:
        The header, and the tree over the upload's packets.

    Raises:
        SecAggAbort: BAD_UPLOAD.

    """
    try:
        header = verify_header(upload.header, plan_digest, roster)
    except SecAggRefused as error:
        raise SecAggAbort(AbortCode.BAD_UPLOAD, str(error), (upload.node,)) from error
    if header.node not in group.neighbours:
        refuse_upload(upload, "a member of the group")
    peers = [edge.peer for edge in upload.edge_commitments]
    if peers != sorted(group.neighbours[header.node]):
        refuse_upload(upload, "a commitment per neighbour")
    if tuple(packet.node for packet in upload.packets) != group.committee:
        refuse_upload(upload, "a packet per member of the committee")
    tree = packet_tree({packet.node: packet.sealed for packet in upload.packets})
    stated = (header.words, header.commitments, header.node, header.packets_root)
    found = (
        digest_words(words).hex(),
        commitments_digest(upload).hex(),
        upload.node,
        tree.root().hex(),
    )
    if stated != found or upload.words_digest.hex() != header.words:
        refuse_upload(upload, "words, commitments and packets as its header names them")
    return header, tree


def check_edges(upload: Upload, others: Mapping[str, Upload]) -> None:
    """Check that both ends of an edge commit to one seed: else their masks would not cancel.

    Raises:
        SecAggAbort: BAD_EDGE naming the pair, of which one lies.

    """
    for edge in upload.edge_commitments:
        other = others.get(edge.peer)
        if other is not None and _commitment(other, upload.node) != edge.commitment:
            pair = (min(upload.node, edge.peer), max(upload.node, edge.peer))
            raise SecAggAbort(
                AbortCode.BAD_EDGE,
                f"Expected one seed between {pair[0]!r} and {pair[1]!r}, got two commitments: "
                "one of them lies. The later upload was not added.",
                pair,
            )


def refuse_upload(upload: Upload, expected: str) -> NoReturn:
    """Raise SecAggAbort: what was expected of an upload."""
    raise SecAggAbort(
        AbortCode.BAD_UPLOAD,
        f"Expected {expected}, got another upload from {upload.node!r}. It was not added.",
        (upload.node,),
    )


def _commitment(upload: Upload, peer: str) -> bytes:
    return next(edge.commitment for edge in upload.edge_commitments if edge.peer == peer)
