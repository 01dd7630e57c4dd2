"""One contract for what a member remembers, on both implementations; and crashes."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privacy.secagg.header import RefusalCode, SecAggRefused
from privacy.secagg.keys import EpochKeys
from privacy.secagg.memory import PlanKey, RoundStore, StoreConflict
from privacy.secagg.node import SecAggNode
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.store import SqliteRoundStore

DIGEST, OTHER = b"d" * 32, b"e" * 32


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, federation: Any, tmp_path: Path) -> RoundStore:
    if request.param == "memory":
        return federation.nodes["node-0"].store
    return SqliteRoundStore(tmp_path / "rounds.db")


def key(round_number: int, attempt: int = 1, run: str = "run-1", epoch: int = 1) -> PlanKey:
    return PlanKey("hospitals", run, epoch, round_number, attempt)


def test_claims_only_go_forward(store: RoundStore) -> None:
    assert store.last_seen("hospitals", "run-1") is None
    store.claim_plan(key(2, 1), DIGEST)
    for late in (key(2, 1), key(1, 3), key(2, 1, epoch=2)):
        with pytest.raises(StoreConflict, match="after"):
            store.claim_plan(late, OTHER)
    assert not store.is_claimed(OTHER)
    store.claim_plan(key(2, 2), OTHER)
    assert store.is_claimed(DIGEST)
    assert store.last_seen("hospitals", "run-1") == (2, 2)


def test_runs_do_not_hinder_each_other(store: RoundStore) -> None:
    store.claim_plan(key(5), DIGEST)
    store.claim_plan(key(1, run="run-2"), OTHER)
    assert store.last_seen("hospitals", "run-2") == (1, 1)


def test_the_first_set_and_the_first_reply_stay(store: RoundStore) -> None:
    assert store.signed_set(DIGEST) is None
    assert store.record_signed_set(DIGEST, b"one") == b"one"
    assert store.record_signed_set(DIGEST, b"two") == b"one" == store.signed_set(DIGEST)
    assert store.unmask_reply(DIGEST) is None
    assert store.record_unmask_reply(DIGEST, b"three") == b"three"
    assert store.record_unmask_reply(DIGEST, b"four") == b"three" == store.unmask_reply(DIGEST)


def test_the_file_is_private_durable_and_synchronous(tmp_path: Path) -> None:
    path = tmp_path / "rounds.db"
    store = SqliteRoundStore(path)
    store.claim_plan(key(1), DIGEST)
    store.record_signed_set(DIGEST, b"one")
    assert path.stat().st_mode & 0o777 == 0o600
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()
    again = SqliteRoundStore(path)
    assert again.last_seen("hospitals", "run-1") == (1, 1)
    assert again.record_signed_set(DIGEST, b"two") == b"one"


def test_a_failed_write_leaves_no_lock(tmp_path: Path) -> None:
    store = SqliteRoundStore(tmp_path / "rounds.db")
    store.claim_plan(key(1), DIGEST)
    with pytest.raises(sqlite3.IntegrityError):
        store.claim_plan(key(2), DIGEST)
    store.claim_plan(key(3), OTHER)
    assert store.last_seen("hospitals", "run-1") == (3, 1)


def restarted(federation: Any, path: Path) -> SecAggNode:
    """node-0 after its process died: keys from tmpfs, memory from its file."""
    keys = EpochKeys.from_bytes(federation.keys["node-0"].to_bytes())
    node = federation.nodes["node-0"]
    pairwise = PairwiseKeys(keys, node.roster)
    return replace(node, pairwise=pairwise, store=SqliteRoundStore(path))


def test_a_crash_between_persist_and_send_repeats_the_bytes(
    federation: Any, tmp_path: Path
) -> None:
    path, plan = tmp_path / "rounds.db", federation.plan()
    federation.nodes["node-0"] = restarted(federation, path)
    total = federation.collect(plan)
    headers = total.close().headers
    signature = restarted(federation, path).sign_survivors(plan, headers)
    assert restarted(federation, path).sign_survivors(plan, headers) == signature
    total.certify(federation.sign(plan, total))
    request = total.unmask_request("node-0")
    reply = restarted(federation, path).unmask(plan, request).to_bytes()
    changed = replace(request, packets=request.packets[::-1][:0])
    assert restarted(federation, path).unmask(plan, request).to_bytes() == reply
    assert restarted(federation, path).unmask(plan, changed).to_bytes() == reply


def test_a_restarted_member_signs_no_second_set_and_no_second_upload(
    federation: Any, tmp_path: Path, make_federation: Callable[..., Any]
) -> None:
    path, plan = tmp_path / "rounds.db", federation.plan()
    federation.nodes["node-0"] = restarted(federation, path)
    total = federation.collect(plan)
    headers = total.close().headers
    restarted(federation, path).sign_survivors(plan, headers)
    with pytest.raises(SecAggRefused) as second_set:
        restarted(federation, path).sign_survivors(plan, headers[:3])
    with pytest.raises(SecAggRefused) as second_upload:
        restarted(federation, path).seal_upload(federation.vector("node-0", plan), plan)
    assert second_set.value.code is RefusalCode.SECOND_SET
    assert second_upload.value.code is RefusalCode.REPLAYED


def test_nothing_leaves_a_member_whose_store_fails(federation: Any) -> None:
    class FullDisk(type(federation.nodes["node-0"].store)):  # type: ignore[misc]
        def claim_plan(self, key: PlanKey, digest: bytes) -> None:
            raise OSError("No space left on device")

    node = replace(federation.nodes["node-0"], store=FullDisk())
    words = federation.vector("node-0", federation.plan())
    before = words.copy()
    with pytest.raises(OSError, match="space"):
        node.seal_upload(words, federation.plan())
    assert (words == before).all()
