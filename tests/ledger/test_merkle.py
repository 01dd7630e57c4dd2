"""RFC 6962 trees: published proofs, good and broken, and a naive tree as the oracle."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.ledger.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    ProofError,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [leaf_hash(b"%d" % number) for number in range(70)]


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH as RFC 6962 writes it."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else EMPTY_ROOT
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node_hash(naive_root(leaves[:k]), naive_root(leaves[k:]))


def tree_of(size: int) -> MerkleTree:
    tree = MerkleTree()
    for leaf in LEAVES[:size]:
        tree.append(leaf)
    return tree


def read_vectors(shared_dir: Path, name: str) -> list[dict[str, Any]]:
    path = shared_dir / "vectors" / "merkle_rfc6962" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def decoded(case: dict[str, Any], key: str) -> bytes:
    return base64.b64decode(case.get(key) or "")


def holds(check: Any, *arguments: Any) -> bool:
    try:
        check(*arguments)
    except ProofError:
        return False
    return True


def test_published_inclusion_proofs(shared_dir: Path) -> None:
    cases = read_vectors(shared_dir, "inclusion")
    verdicts: Counter[bool] = Counter()
    for case in cases:
        proof = [base64.b64decode(item) for item in case.get("proof") or []]
        index, size = case.get("leafIdx", 0), case.get("treeSize", 0)
        leaf, root = decoded(case, "leafHash"), decoded(case, "root")
        accepted = holds(verify_inclusion, index, size, leaf, proof, root)
        assert accepted is not case.get("wantErr", False), case["case"]
        verdicts[accepted] += 1
    assert verdicts == {True: 6, False: 92}


def test_published_consistency_proofs(shared_dir: Path) -> None:
    cases = read_vectors(shared_dir, "consistency")
    verdicts: Counter[bool] = Counter()
    for case in cases:
        proof = [base64.b64decode(item) for item in case.get("proof") or []]
        old_size, size = case.get("size1", 0), case.get("size2", 0)
        old_root, root = decoded(case, "root1"), decoded(case, "root2")
        accepted = holds(verify_consistency, old_size, size, proof, old_root, root)
        assert accepted is not case.get("wantErr", False), case["case"]
        verdicts[accepted] += 1
    assert verdicts == {True: 6, False: 92}


def test_roots_agree_with_the_naive_tree_at_every_size() -> None:
    tree = tree_of(len(LEAVES))
    for size in range(len(LEAVES) + 1):
        assert tree.root(size) == naive_root(LEAVES[:size])


@given(st.data())
def test_inclusion_is_provable_for_this_leaf_only(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(LEAVES)))
    index = data.draw(st.integers(0, size - 1))
    tree = tree_of(len(LEAVES))
    proof, root = tree.inclusion_proof(index, size), naive_root(LEAVES[:size])
    verify_inclusion(index, size, LEAVES[index], proof, root)
    with pytest.raises(ProofError):
        verify_inclusion(index, size, leaf_hash(b"another"), proof, root)


@given(st.data())
def test_consistency_is_provable_for_the_true_history_only(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(LEAVES)))
    old_size = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, old_size - 1))
    proof = tree_of(len(LEAVES)).consistency_proof(old_size, size)
    old, new = naive_root(LEAVES[:old_size]), naive_root(LEAVES[:size])
    verify_consistency(old_size, size, proof, old, new)
    other = [*LEAVES[:changed], leaf_hash(b"changed"), *LEAVES[changed + 1 :]]
    with pytest.raises(ProofError):
        verify_consistency(old_size, size, proof, naive_root(other[:old_size]), new)


def test_a_long_proof_is_refused_before_hashing() -> None:
    with pytest.raises(ProofError, match="Expected 3 hashes"):
        verify_inclusion(0, 8, LEAVES[0], [LEAVES[0]] * 10_000, LEAVES[0])


def test_proofs_beyond_the_tree_are_refused() -> None:
    tree = tree_of(3)
    for request in (lambda: tree.root(4), lambda: tree.inclusion_proof(3), lambda: tree.root(-1)):
        with pytest.raises(ProofError, match="Expected"):
            request()
    with pytest.raises(ProofError, match="from 1 to 3"):
        tree.consistency_proof(0)
