"""Sealed uploads: the same bytes from memory and from disk, and no second copy of the words."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
from blake3 import blake3

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
    loaded = Outbox(tmp_path / "outbox").load(PLAN, sealed.digest)
    assert loaded == sealed
    assert bytes(sealed.words) == words.tobytes()
    assert sealed.words.readonly


def test_what_a_debit_names_is_every_byte(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    sealed = outbox.seal(PLAN, UPLOAD, pack(np.arange(20, dtype="<u2"), 16))
    path = tmp_path / f"{PLAN.hex()}.sealed"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert outbox.load(PLAN, sealed.digest) is None
    for other in (whole[:-1], whole + b"\0", whole[:3], b""):
        path.write_bytes(other)
        assert outbox.load(PLAN, sealed.digest) is None
    path.write_bytes(whole)
    assert outbox.load(PLAN, sealed.digest) == sealed


def test_what_an_older_version_debited_is_sent(tmp_path: Path) -> None:
    sealed = Outbox(tmp_path).seal(PLAN, UPLOAD, pack(np.arange(20, dtype="<u2"), 16))
    of_file = hashlib.sha256((tmp_path / f"{PLAN.hex()}.sealed").read_bytes()).hexdigest()
    found = Outbox(tmp_path).load(PLAN, of_file)
    assert found is not None
    assert (found.upload, found.words) == (sealed.upload, sealed.words)


def test_a_file_of_what_a_debit_digests_is_no_upload(tmp_path: Path) -> None:
    """Both digests are SHA-256, of a file or of its parts: neither passes for the other."""
    outbox = Outbox(tmp_path)
    sealed = outbox.seal(PLAN, UPLOAD, pack(np.arange(20, dtype="<u2"), 16))
    path = tmp_path / f"{PLAN.hex()}.sealed"
    head = path.read_bytes()[: -len(sealed.words)]
    parts = b"arion sealed upload, parts\0" + head + blake3(sealed.words).digest()
    assert hashlib.sha256(parts).hexdigest() == sealed.digest  # as debits on nodes' disks have it
    for other in (parts, parts[parts.index(b"\0") + 1 :]):
        path.write_bytes(other)
        assert outbox.load(PLAN, sealed.digest) is None


def test_sealing_copies_no_vector(tmp_path: Path) -> None:
    words = np.zeros(500_000, "<u2")
    outbox = Outbox(tmp_path / "outbox")
    tracemalloc.start()
    outbox.seal(PLAN, UPLOAD, pack(words, 16))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < words.nbytes / 10
