"""Whose keys an epoch runs on: bundles that its members signed, each with a commitment to a nonce.

Once a member accepted all bundles it reveals the nonce (`privacy.secagg.reveals`). Members that are
away when the bundles are collected are not in the epoch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from pydantic import ValidationError

from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical
from privacy.identity import SignatureError, Signed, verify_signed
from privacy.round_plan import RoundPlan
from privacy.secagg.graph import Group, Shape, attempt_seed, draw_groups
from privacy.secagg.keys import (
    KeyBundle,
    Kind,
    RosterError,
    Statement,
)

_Said = TypeVar("_Said", bound=Statement)


@dataclass(frozen=True)
class Roster:
    """Verified bundles of one epoch.

    Attributes:
        federation: identifier of the federation.
        epoch: number of the epoch.
        bundles: one per member, sorted by name.
        digest: SHA-256 over the exact bundles, 32 bytes: equal only for equal keys.
        pins: identity keys by member, 32 bytes each.
        own: this member's name; None at the coordinator.
        graph_seed: of `reveals.accept_reveals`, 32 bytes; empty before.

    """

    federation: str
    epoch: int
    bundles: tuple[KeyBundle, ...]
    digest: bytes
    pins: Mapping[str, bytes]
    own: str | None
    graph_seed: bytes = b""

    @property
    def names(self) -> tuple[str, ...]:
        """Members' names, sorted."""
        return tuple(bundle.node for bundle in self.bundles)

    @property
    def own_commitment(self) -> bytes:
        """The commitment to our own nonce, 32 bytes."""
        bundle = next(bundle for bundle in self.bundles if bundle.node == self.own)
        return bytes.fromhex(bundle.nonce_commitment)

    @property
    def hybrid(self) -> bool:
        """Whether pairwise secrets need ML-KEM-768 too."""
        return self.bundles[0].kem_key is not None

    def groups(self, plan: RoundPlan) -> tuple[Group, ...]:
        """Return the groups of a plan's attempt, which no plan can choose.

        Raises:
            RosterError: before the nonces were revealed.

        """
        if not self.graph_seed:
            refuse("all nonces of the epoch", "none yet")
        seed = attempt_seed(self.graph_seed, plan.round, plan.attempt)
        return draw_groups(seed, self.names, Shape(plan.groups, plan.degree, plan.committee))

    def group_of(self, plan: RoundPlan, name: str) -> Group:
        """Return the group that a member is in; RosterError as `groups`."""
        return next(group for group in self.groups(plan) if name in group.neighbours)

    def public_key(self, kind: Kind, node: str) -> bytes:
        """Return a member's X25519 public key for one purpose."""
        bundle = next(bundle for bundle in self.bundles if bundle.node == node)
        return bytes.fromhex(bundle.mask_key if kind == "mask" else bundle.encryption_key)


def accept_roster(
    bundles: Sequence[Signed],
    pins: Mapping[str, bytes],
    own_bundle: Signed | None,
    epoch: int,
    federation: str,
    *,
    least: int | None = None,
) -> Roster:
    """Check the bundles that the coordinator relayed.

    1. Each is canonical and signed by the pinned identity of the member it names. 2. It is of this
    federation and epoch. 3. No member is there twice, and enough of them are. 4. No key occurs
    twice, for whatever purpose, in whatever spelling. 5. Our own bundle is among them, unchanged.
    6. All have an ML-KEM-768 key or none has, and nobody another's nonce commitment.

    Args:
        bundles: in any order.
        pins: identity keys of all members by name, compared out of band.
        own_bundle: what this member published; None at the coordinator.
        epoch: number of the epoch.
        federation: identifier of the federation.
        least: how many members must be in it; None wants all that are pinned.

    Returns:
        The roster, without a graph as yet.

    Raises:
        RosterError: the first check that fails.

    """
    parsed = sorted((_verified(signed, pins) for signed in bundles), key=lambda b: b.node)  # 1
    for bundle in parsed:
        if (bundle.federation, bundle.epoch) != (federation, epoch):  # 2
            refuse(
                f"bundles of {federation!r}, epoch {epoch}",
                f"{bundle.federation!r}, epoch {bundle.epoch} of {bundle.node!r}",
            )
    names = [bundle.node for bundle in parsed]
    wanted = len(pins) if least is None else least
    if len(set(names)) != len(names) or len(names) < wanted:  # 3
        missing = sorted(set(pins) - set(names))
        refuse(
            f"one bundle each of at least {wanted} of the {len(pins)} pinned members",
            f"{len(names)} bundles, missing {missing}",
        )
    keys = [key for bundle in parsed for key in (bundle.mask_key, bundle.encryption_key)]
    if len(set(keys)) != len(keys):  # 4
        refuse("a key of its own for every member and purpose", "one key twice")
    if not all(_is_canonical(bytes.fromhex(key)) for key in keys):  # 4
        refuse("X25519 keys below 2^255 - 19", "another spelling of a key")
    if own_bundle is not None and own_bundle not in bundles:  # 5
        refuse("this member's own bundle, unchanged", "another one, or none")
    kem_keys = {bundle.kem_key for bundle in parsed}
    if kem_keys != {None} and (None in kem_keys or len(kem_keys) != len(parsed)):  # 6
        refuse("an ML-KEM-768 key of every member, or of none", "some, or one twice")
    if len({bundle.nonce_commitment for bundle in parsed}) != len(parsed):  # 6
        refuse("a nonce of its own of every member", "one commitment twice")
    own = None if own_bundle is None else _verified(own_bundle, pins).node
    digest = hashlib.sha256(
        canonical_bytes([bundle.model_dump(mode="json") for bundle in parsed])
    ).digest()
    return Roster(federation, epoch, tuple(parsed), digest, dict(pins), own)


def _is_canonical(public_key: bytes) -> bool:
    """Tell whether an X25519 key is spelled as the field element it stands for (RFC 7748, 5)."""
    return int.from_bytes(public_key, "little") < 2**255 - 19


def _verified(signed: Signed, pins: Mapping[str, bytes]) -> KeyBundle:
    return read_signed(KeyBundle, "bundle", signed, pins)


def read_signed(kind: type[_Said], domain: str, signed: Signed, pins: Mapping[str, bytes]) -> _Said:
    """Read what a member signed, and check it under the pin of the member it names.

    Args:
        kind, domain: of the statement.
        signed: what came.
        pins: identity keys of all members by name.

    Raises:
        RosterError: not canonical, of nobody pinned, or not signed by the one it names.

    """
    try:
        parse_canonical(signed.payload)
        read = kind.model_validate_json(signed.payload)
    except (CanonicalError, ValidationError) as error:
        raise RosterError(
            f"Expected a {domain}, got bytes that are not one: {type(error).__name__}."
        ) from error
    if read.node not in pins:
        refuse(f"a {domain} of pinned members", f"one of {read.node!r}, who is not pinned")
    try:
        verify_signed(pins[read.node], domain, signed)
    except SignatureError as error:
        raise RosterError(f"{domain.capitalize()} of {read.node!r}: {error}") from error
    return read


def refuse(expected: str, got: str) -> NoReturn:
    """Raise a RosterError."""
    raise RosterError(f"Expected {expected}, got {got}. Ask the coordinator for the epoch again.")
