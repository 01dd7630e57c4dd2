"""Sealed uploads: the same bytes from memory and from disk, and no second copy of the words."""

import tracemalloc
from pathlib import Path

import numpy as np

from client.outbox import Outbox
from privacy.secagg.packing import pack
from protos.messages import EdgeCommitment, SealedPacket, Upload
from protos.signed import Signed

PLAN = bytes(32)
UPLOAD = Upload(
    node="north",
    header=Signed(b"{}", bytes(64)),
    words_digest=bytes(32),
    own_commitment=bytes(32),
    edge_commitments=(EdgeCommitment("south", bytes(32)),),
    packets=(SealedPacket("north", bytes(48)), SealedPacket("south", bytes(48))),
)


def test_what_is_sealed_is_what_is_loaded(tmp_path: Path) -> None:
    words = np.arange(1000, dtype="<u2")
    sealed = Outbox(tmp_path / "outbox").seal(PLAN, UPLOAD, pack(words, 16))
    loaded = Outbox(tmp_path / "outbox").load(PLAN)
    assert loaded == sealed
    assert bytes(sealed.words) == words.tobytes()
    assert sealed.words.readonly


def test_sealing_copies_no_vector(tmp_path: Path) -> None:
    words = np.zeros(500_000, "<u2")
    outbox = Outbox(tmp_path / "outbox")
    tracemalloc.start()
    outbox.seal(PLAN, UPLOAD, pack(words, 16))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < words.nbytes / 10
