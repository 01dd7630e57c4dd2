"""Nonces committed to before any is shown, and secrets that also rest on ML-KEM-768."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from privacy.identity import IdentityKey, Signed
from privacy.secagg.keys import EpochKeys, KeyBundle, RosterError, commit_nonce
from privacy.secagg.memory import StoreConflict
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.parameters import LARGEST_EPOCHS
from privacy.secagg.reveals import Reveal, accept_reveals, reveal
from privacy.secagg.roster import accept_roster
from privacy.secagg.store import SqliteRoundStore


def unopened(federation: Any) -> Any:
    """node-0's roster before the nonces."""
    return replace(federation.nodes["node-0"].roster, graph_seed=b"")


def accept(federation: Any, reveals: list[Signed]) -> Any:
    return accept_reveals(unopened(federation), reveals, federation.reveals[0])[0]


def with_reveal(federation: Any, place: int, signed: Signed) -> list[Signed]:
    return [*federation.reveals[:place], signed, *federation.reveals[place + 1 :]]


def resigned(federation: Any, place: int, **changes: Any) -> Signed:
    shown = Reveal.model_validate_json(federation.reveals[place].payload)
    payload = shown.model_copy(update=changes).payload()
    return federation.identities[f"node-{place}"].sign("reveal", payload)


def test_everyone_draws_the_same_seed(federation: Any) -> None:
    seeds = {node.roster.graph_seed for node in federation.nodes.values()}
    assert seeds == {federation.roster.graph_seed}
    assert accept(federation, federation.reveals[::-1]).graph_seed in seeds


def test_a_nonce_that_was_not_committed_to(federation: Any) -> None:
    """Whoever reveals last cannot choose: the coordinator would grind for a graph it likes."""
    for nonce in ("00" * 32, EpochKeys.generate().nonce.hex()):
        with pytest.raises(RosterError, match="commits to"):
            accept(federation, with_reveal(federation, 2, resigned(federation, 2, nonce=nonce)))


def test_a_nonce_that_is_withheld_ends_the_epoch(federation: Any) -> None:
    with pytest.raises(RosterError, match="missing \\['node-3'\\]"):
        accept(federation, federation.reveals[:3])
    with pytest.raises(RosterError, match="one nonce of each"):
        accept(federation, [*federation.reveals, federation.reveals[1]])
    with pytest.raises(RosterError, match="all nonces of the epoch"):
        unopened(federation).groups(federation.plan())


def test_a_nonce_shown_for_another_roster(federation: Any) -> None:
    other = resigned(federation, 1, roster="0" * 64)
    with pytest.raises(RosterError, match="for this roster"):
        accept(federation, with_reveal(federation, 1, other))


def test_a_nonce_signed_by_another(federation: Any) -> None:
    payload = federation.reveals[1].payload
    forged = IdentityKey.generate().sign("reveal", payload)
    with pytest.raises(RosterError, match="Reveal of 'node-1'"):
        accept(federation, with_reveal(federation, 1, forged))
    bundle = Signed(payload, federation.bundles[1].signature)
    with pytest.raises(RosterError, match="Reveal of 'node-1'"):
        accept(federation, with_reveal(federation, 1, bundle))
    with pytest.raises(RosterError, match="not one"):
        accept(federation, with_reveal(federation, 1, Signed(b"{}", bytes(64))))


def test_our_own_nonce_altered(federation: Any) -> None:
    own = resigned(federation, 0, nonce="00" * 32)
    with pytest.raises(RosterError, match="this member's own nonce"):
        accept_reveals(unopened(federation), federation.reveals, own)


def test_a_commitment_that_was_copied(federation: Any) -> None:
    """Whoever copies a commitment could copy the nonce, too; it binds its member besides."""
    bundles = list(federation.bundles)
    theirs = KeyBundle.model_validate_json(bundles[1].payload).nonce_commitment
    copy = KeyBundle.model_validate_json(bundles[2].payload).model_copy(
        update={"nonce_commitment": theirs}
    )
    bundles[2] = federation.identities["node-2"].sign("bundle", copy.payload())
    with pytest.raises(RosterError, match="one commitment twice"):
        accept_roster(bundles, federation.pins, bundles[0], 1, "hospitals")
    assert commit_nonce(bytes(32), "f", 1, "a") != commit_nonce(bytes(32), "f", 1, "b")


def test_rosters_are_counted_on_disk(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteRoundStore(tmp_path / "rounds.sqlite")
    monkeypatch.setattr("privacy.secagg.store.LARGEST_EPOCHS", 3)
    for place in (0, 1, 1, 2, 0):
        store.claim_roster("hospitals", bytes([place]) * 32, bytes([place]) * 32)
    store.claim_roster("banks", b"\x09" * 32, b"\x09" * 32)
    store.close()
    again = SqliteRoundStore(tmp_path / "rounds.sqlite")
    with pytest.raises(StoreConflict, match="at most 3 epochs"):
        again.claim_roster("hospitals", b"\x04" * 32, b"\x04" * 32)
    again.claim_roster("hospitals", b"\x02" * 32, b"\x02" * 32)
    with pytest.raises(StoreConflict, match="revealed its nonce for"):
        again.claim_roster("hospitals", b"\x02" * 32, b"\x03" * 32)
    assert LARGEST_EPOCHS == 2**16


@pytest.fixture
def hybrid(make_federation: Callable[..., Any]) -> Any:
    return make_federation(5, 3, 1, hybrid=True)


def test_a_hybrid_sum_is_exact_with_drop_outs(hybrid: Any) -> None:
    plan = hybrid.plan()
    opened = hybrid.run(plan, before_upload=["node-4"])
    assert (opened.words == hybrid.expected(plan, opened.survivors)).all()
    assert opened.survivors == hybrid.names[:4]


def test_a_hybrid_secret_needs_both_parts(hybrid: Any) -> None:
    one, two = hybrid.nodes["node-1"].pairwise, hybrid.nodes["node-2"].pairwise
    assert one.prk("mask", "node-2") == two.prk("mask", "node-1")
    without_kem = {**two.kem_secrets, "node-1": bytes(32)}
    other = PairwiseKeys(two.keys, two.roster, without_kem)
    assert other.prk("mask", "node-1") != two.prk("mask", "node-1")
    stranger = PairwiseKeys(EpochKeys.generate(), two.roster, two.kem_secrets)
    assert stranger.prk("mask", "node-1") != two.prk("mask", "node-1")
    with pytest.raises(KeyError):
        PairwiseKeys(two.keys, two.roster).prk("mask", "node-1")


def test_an_altered_ciphertext_gives_another_secret(hybrid: Any) -> None:
    keys = hybrid.keys["node-2"]
    shown = Reveal.model_validate_json(hybrid.reveals[1].payload)
    sealed = bytes.fromhex(shown.ciphertexts["node-2"])
    altered = bytes([sealed[0] ^ 1]) + sealed[1:]
    assert keys.decapsulate(sealed) == hybrid.nodes["node-1"].pairwise.kem_secrets["node-2"]
    assert keys.decapsulate(altered) != keys.decapsulate(sealed)
    with pytest.raises(RosterError, match="ML-KEM-768 ciphertext"):
        keys.decapsulate(sealed[:-1])


def test_ciphertexts_that_are_missing(hybrid: Any) -> None:
    shown = Reveal.model_validate_json(hybrid.reveals[1].payload)
    fewer = dict(shown.ciphertexts)
    del fewer["node-3"]
    with pytest.raises(RosterError, match="ciphertexts for all later members"):
        accept(hybrid, with_reveal(hybrid, 1, resigned(hybrid, 1, ciphertexts=fewer)))


def test_a_member_without_a_hybrid_key(hybrid: Any) -> None:
    """One member's X25519 alone would let a downgrade pass unseen."""
    bundles = list(hybrid.bundles)
    identity = hybrid.identities["node-2"]
    bundles[2] = hybrid.keys["node-2"].bundle("hospitals", 1, "node-2", identity)
    with pytest.raises(RosterError, match="of every member, or of none"):
        accept_roster(bundles, hybrid.pins, bundles[0], 1, "hospitals")


def test_a_key_that_is_not_ml_kem(hybrid: Any) -> None:
    roster = unopened(hybrid)
    broken = roster.bundles[2].model_copy(update={"kem_key": "ff" * 1184})
    bundles = (*roster.bundles[:2], broken, *roster.bundles[3:])
    with pytest.raises(RosterError, match="ML-KEM-768 public key"):
        reveal(replace(roster, bundles=bundles), hybrid.keys["node-0"], IdentityKey.generate())
