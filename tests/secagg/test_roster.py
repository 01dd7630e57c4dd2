"""Which key bundles a member accepts, and what follows from different ones."""

from dataclasses import replace
from typing import Any

import pytest

from privacy.identity import IdentityKey
from privacy.secagg.keys import EpochKeys, KeyBundle, RosterError
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.roster import accept_roster

LOW_ORDER = ("00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f")


def accept(world: Any, bundles: Any, own: int | None = 0, /, **changes: Any) -> Any:
    values = {"pins": world.pins, "epoch": 1, "federation": "hospitals", **changes}
    own_bundle = None if own is None else world.bundles[own]
    return accept_roster(bundles, values["pins"], own_bundle, values["epoch"], values["federation"])


def resigned(world: Any, place: int, /, **changes: Any) -> Any:
    """A member's bundle with other content, signed by that member."""
    signed = world.bundles[place]
    bundle = KeyBundle.model_validate_json(signed.payload).model_copy(update=changes)
    return world.identities[f"node-{place}"].sign("bundle", bundle.payload())


def with_bundle(federation: Any, place: int, signed: Any) -> list[Any]:
    return [*federation.bundles[:place], signed, *federation.bundles[place + 1 :]]


def test_order_does_not_matter(federation: Any) -> None:
    roster = accept(federation, federation.bundles[::-1])
    assert roster.own == "node-0"
    assert roster.digest == federation.roster.digest
    assert roster.names == ("node-0", "node-1", "node-2", "node-3")


def test_a_swapped_key(federation: Any) -> None:
    bundle = KeyBundle.model_validate_json(federation.bundles[1].payload)
    evil = bundle.model_copy(update={"mask_key": "11" * 32})
    forged = IdentityKey.generate().sign("bundle", evil.payload())
    with pytest.raises(RosterError, match="'node-1': Expected a 'bundle' signature"):
        accept(federation, with_bundle(federation, 1, forged))


def test_one_members_bundle_shown_as_anothers(federation: Any) -> None:
    with pytest.raises(RosterError, match="one bundle each of at least 4 of the 4 pinned members"):
        accept(federation, with_bundle(federation, 2, federation.bundles[3]))
    renamed = resigned(federation, 3, node="node-2")
    with pytest.raises(RosterError, match="'node-2': Expected a 'bundle' signature"):
        accept(federation, with_bundle(federation, 2, renamed))


@pytest.mark.parametrize("field", ["mask_key", "encryption_key"])
def test_a_key_that_occurs_twice(federation: Any, field: str) -> None:
    other = KeyBundle.model_validate_json(federation.bundles[2].payload)
    twin = resigned(federation, 3, **{field: other.mask_key})
    with pytest.raises(RosterError, match="one key twice"):
        accept(federation, with_bundle(federation, 3, twin))


def test_another_spelling_of_a_key(federation: Any) -> None:
    other = KeyBundle.model_validate_json(federation.bundles[2].payload)
    key = bytes.fromhex(other.mask_key)
    same_point = key[:-1] + bytes([key[-1] | 0x80])
    twin = resigned(federation, 3, mask_key=same_point.hex())
    with pytest.raises(RosterError, match="another spelling"):
        accept(federation, with_bundle(federation, 3, twin))


@pytest.mark.parametrize("changes", [{"epoch": 2}, {"federation": "banks"}])
def test_a_bundle_of_another_epoch_or_federation(federation: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(RosterError, match="epoch"):
        accept(federation, with_bundle(federation, 1, resigned(federation, 1, **changes)))
    with pytest.raises(RosterError, match="epoch"):
        accept(federation, federation.bundles, **changes)


def test_own_bundle_altered(federation: Any) -> None:
    altered = with_bundle(federation, 0, resigned(federation, 0, mask_key="11" * 32))
    with pytest.raises(RosterError, match="own bundle"):
        accept(federation, altered)
    assert accept(federation, altered, 1).own == "node-1"


def test_a_sybil_or_a_missing_member(federation: Any) -> None:
    identity = IdentityKey.generate()
    sybil = EpochKeys.generate().bundle("hospitals", 1, "sybil", identity)
    with pytest.raises(RosterError, match="not pinned"):
        accept(federation, [*federation.bundles, sybil])
    with pytest.raises(RosterError, match="missing \\['node-3'\\]"):
        accept(federation, federation.bundles[:3])


def test_bytes_that_are_no_bundle(federation: Any) -> None:
    signed = replace(federation.bundles[1], payload=b"{}")
    with pytest.raises(RosterError, match="not one"):
        accept(federation, with_bundle(federation, 1, signed))


def test_another_roster_gives_other_secrets(federation: Any) -> None:
    other = with_bundle(federation, 3, resigned(federation, 3, encryption_key="11" * 32))
    one = PairwiseKeys(federation.keys["node-0"], accept(federation, federation.bundles))
    two = PairwiseKeys(federation.keys["node-1"], accept(federation, other, 1))
    same = PairwiseKeys(federation.keys["node-1"], accept(federation, federation.bundles, 1))
    assert one.prk("mask", "node-1") == same.prk("mask", "node-0") != two.prk("mask", "node-0")
    assert one.prk("mask", "node-1") != one.prk("packet", "node-1")


@pytest.mark.parametrize("public", LOW_ORDER)
def test_points_of_low_order_give_no_secret(public: str) -> None:
    with pytest.raises(RosterError, match="low order"):
        EpochKeys.generate().exchange("mask", bytes.fromhex(public))


def test_epoch_keys_survive_a_crash_of_the_process(federation: Any) -> None:
    keys = federation.keys["node-0"]
    restored = EpochKeys.from_bytes(keys.to_bytes())
    identity = federation.identities["node-0"]
    assert restored.bundle("hospitals", 1, "node-0", identity) == federation.bundles[0]
    with pytest.raises(RosterError, match="160 bytes"):
        EpochKeys.from_bytes(bytes(63))
