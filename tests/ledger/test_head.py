"""Tree heads and the witness: growth is accepted, forks and rollbacks are not."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from privacy.canonical import canonical_bytes
from privacy.identity import IdentityKey, SignatureError
from privacy.ledger.entries import ForkError, LedgerError
from privacy.ledger.head import (
    HeadWitness,
    TreeHead,
    parse_signed_line,
    signed_line,
    verify_head,
)
from privacy.ledger.log import LedgerLog

Make = SimpleNamespace


@pytest.fixture
def witness(tmp_path: Path) -> HeadWitness:
    return HeadWitness(tmp_path / "hub.witness.json", "hub", "hospital-a")


def test_a_signed_head_survives_its_line(node_dir: Path, make: Make) -> None:
    with LedgerLog(node_dir, "hospital-a") as log:
        signed = log.heads[0]
    assert parse_signed_line(signed_line(signed)) == signed
    head = verify_head(make.NODE_KEY.public_key, signed)
    assert (head.ledger, head.size, head.time) == ("hospital-a", 2, "2026-01-02T03:04:05Z")


def test_a_ledger_that_has_not_grown_keeps_its_head(node_dir: Path, make: Make) -> None:
    with LedgerLog(node_dir, "hospital-a") as log:
        assert log.sign_head(make.NODE_KEY) == log.heads[-1]
        assert len(log.heads) == 3


def test_an_empty_ledger_has_no_head(tmp_path: Path, make: Make) -> None:
    with LedgerLog(tmp_path, "hub") as log, pytest.raises(LedgerError, match="got an empty one"):
        log.sign_head(make.COORDINATOR_KEY)


def test_a_witness_follows_a_growing_ledger(
    tmp_path: Path, witness: HeadWitness, make: Make
) -> None:
    public_key = make.COORDINATOR_KEY.public_key
    with LedgerLog(tmp_path / "hub", "hub") as log:
        for kind, body in make.coordinator_entries():
            held = witness.held.size if witness.held else 0
            log.append(kind, body)
            proof = log.consistency_proof(held) if held else []
            payload = witness.accept(log.sign_head(make.COORDINATOR_KEY), proof, public_key)
            log.add_countersignature(
                make.NODE_KEY.public_key, make.NODE_KEY.sign("ledger-countersign", payload)
            )
        assert HeadWitness(tmp_path / "hub.witness.json", "hub", "x").held == log.last_head


def test_an_offer_that_comes_again_is_accepted_again(
    tmp_path: Path, witness: HeadWitness, make: Make
) -> None:
    """The answer to it was lost; its proof begins at a head that is not the newest any more."""
    public_key = make.COORDINATOR_KEY.public_key
    with LedgerLog(tmp_path / "hub", "hub") as log:
        log.append(*make.opened())
        witness.accept(log.sign_head(make.COORDINATOR_KEY), (), public_key)
        log.append(*make.recorded(1))
        offer = log.sign_head(make.COORDINATOR_KEY), log.consistency_proof(1), public_key
        assert offer[1] != []
        assert witness.accept(*offer) == witness.accept(*offer)
        started_again = HeadWitness(tmp_path / "hub.witness.json", "hub", "hospital-a")
        assert started_again.accept(*offer) == witness.accept(*offer)
        assert started_again.held == log.last_head


def test_another_history_of_the_same_length_is_refused_whatever_its_proof(
    tmp_path: Path, witness: HeadWitness, make: Make
) -> None:
    one, two = two_histories(tmp_path, make)
    public_key = make.COORDINATOR_KEY.public_key
    with one, two:
        witness.accept(one.sign_head(make.COORDINATOR_KEY), (), public_key)
        other = two.sign_head(make.COORDINATOR_KEY)
        for proof in ((), two.consistency_proof(1)):
            with pytest.raises(ForkError, match="it forked"):
                witness.accept(other, proof, public_key)


def two_histories(tmp_path: Path, make: Make) -> tuple[LedgerLog, LedgerLog]:
    """The same first entry, then two different second ones."""
    logs = LedgerLog(tmp_path / "one", "hub"), LedgerLog(tmp_path / "two", "hub")
    for log, digest in zip(logs, (20, 21), strict=True):
        log.append(*make.opened())
        log.append(*make.recorded(1, model_digest_after=make.digest(digest)))
    return logs


def test_a_fork_is_refused_and_not_remembered(
    tmp_path: Path, witness: HeadWitness, make: Make
) -> None:
    key = make.COORDINATOR_KEY
    one, two = two_histories(tmp_path, make)
    witness.accept(one.sign_head(key), [], key.public_key)
    with pytest.raises(ForkError, match="it forked"):
        witness.accept(two.sign_head(key), [], key.public_key)
    two.append(*make.recorded(2))
    with pytest.raises(ForkError, match="keep both heads as evidence"):
        witness.accept(two.sign_head(key), two.consistency_proof(2), key.public_key)
    assert witness.held == one.last_head


def test_a_rollback_is_refused(tmp_path: Path, witness: HeadWitness, make: Make) -> None:
    key = make.COORDINATOR_KEY
    with LedgerLog(tmp_path / "hub", "hub") as log:
        log.append(*make.opened())
        early = log.sign_head(key)
        log.append(*make.recorded(1))
        witness.accept(log.sign_head(key), [], key.public_key)
        with pytest.raises(ForkError, match=r"keep its 2 entries, got a head of 1"):
            witness.accept(early, [], key.public_key)


def test_another_key_or_ledger_is_refused(node_dir: Path, witness: HeadWitness, make: Make) -> None:
    with LedgerLog(node_dir, "hospital-a") as log:
        head = log.heads[-1]
    with pytest.raises(ForkError, match="a head of the ledger 'hub', got one of 'hospital-a'"):
        witness.accept(head, [], make.NODE_KEY.public_key)
    with pytest.raises(SignatureError):
        witness.accept(head, [], make.COORDINATOR_KEY.public_key)


def test_a_countersignature_of_another_history_is_refused(node_dir: Path, make: Make) -> None:
    stranger = IdentityKey.from_bytes(b"\5" * 32)
    statement = {"ledger": "hospital-a", "size": 1, "root": make.digest(0), "witness": "w"}
    signed = stranger.sign("ledger-countersign", canonical_bytes(statement))
    with LedgerLog(node_dir, "hospital-a") as log:
        with pytest.raises(LedgerError, match="by 'w' of another history"):
            log.add_countersignature(stranger.public_key, signed)
        with pytest.raises(SignatureError):
            log.add_countersignature(make.NODE_KEY.public_key, signed)


def test_a_head_cannot_pass_for_a_countersignature(node_dir: Path, make: Make) -> None:
    with LedgerLog(node_dir, "hospital-a") as log, pytest.raises(SignatureError):
        log.add_countersignature(make.NODE_KEY.public_key, log.heads[0])


@pytest.mark.parametrize("change", [{"size": 0}, {"root": "AB" * 32}, {"time": "now"}, {"x": 1}])
def test_malformed_heads_are_refused(make: Make, change: dict[str, object]) -> None:
    head = {"ledger": "hub", "size": 1, "root": make.digest(1), "time": "2026-01-02T03:04:05Z"}
    TreeHead.model_validate(head)
    signed = make.NODE_KEY.sign("ledger-head", canonical_bytes({**head, **change}))  # type: ignore[dict-item]
    with pytest.raises(LedgerError, match="Expected the fields ledger, size, root, time"):
        verify_head(make.NODE_KEY.public_key, signed)
