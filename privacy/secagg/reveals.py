"""The nonces that an epoch's members reveal, each once it accepted the roster.

What is drawn from all nonces together, graphs among it, nobody could choose who had to commit
first; a nonce that is missing ends the epoch for all.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from privacy.identity import IdentityKey, Signed
from privacy.secagg.kdf import encode_parts
from privacy.secagg.keys import (
    EpochKeys,
    Hex32,
    KeyBundle,
    Name,
    RosterError,
    Statement,
    commit_nonce,
    encapsulate,
)
from privacy.secagg.roster import Roster, read_signed, refuse

_HexCiphertext = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2176}$")]
LARGEST_HYBRID = 50


class Reveal(Statement):
    """A member's nonce, shown after it accepted the roster.

    Attributes:
        roster: digest of the bundles that the member accepted, hex.
        nonce: what its bundle commits to, hex.
        ciphertexts: in a hybrid epoch, ML-KEM-768 ciphertexts for all members of later names, hex.

    """

    roster: Hex32
    nonce: Hex32
    ciphertexts: dict[Name, _HexCiphertext] = Field(default_factory=dict, max_length=LARGEST_HYBRID)


class _Kept(BaseModel):
    """`OwnReveal` as it is kept, hex."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    payload: str
    signature: str
    kem_secrets: dict[Name, Hex32]


@dataclass(frozen=True)
class OwnReveal:
    """What a member reveals, and the secrets of the ciphertexts in it by receiver."""

    signed: Signed
    kem_secrets: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            RosterError: other bytes.

        """
        try:
            kept = _Kept.model_validate_json(raw)
            signed = Signed(bytes.fromhex(kept.payload), bytes.fromhex(kept.signature))
        except ValueError:  # whose message would show the secrets
            raise RosterError(
                f"Expected a kept reveal, got {len(raw)} bytes of something else. Start a new "
                "epoch."
            ) from None
        return cls(signed, {name: bytes.fromhex(s) for name, s in kept.kem_secrets.items()})

    def to_bytes(self) -> bytes:
        """Return it with its secrets, for tmpfs only: never for a disk or a backup."""
        kept = _Kept(
            payload=self.signed.payload.hex(),
            signature=self.signed.signature.hex(),
            kem_secrets={name: secret.hex() for name, secret in self.kem_secrets.items()},
        )
        return kept.model_dump_json().encode()

    @property
    def roster(self) -> bytes:
        """Digest of the roster that it is for."""
        return bytes.fromhex(Reveal.model_validate_json(self.signed.payload).roster)


def reveal(roster: Roster, keys: EpochKeys, identity: IdentityKey) -> OwnReveal:
    """Reveal the nonce of a roster that was accepted. In a hybrid epoch: once, as it draws secrets.

    Raises:
        RosterError: a hybrid epoch of more than 50 members, or a key that is not ML-KEM-768.

    """
    own = roster.own
    assert own is not None, "the coordinator has no nonce"
    later = [bundle for bundle in roster.bundles if roster.hybrid and bundle.node > own]
    if len(later) >= LARGEST_HYBRID:
        refuse(f"at most {LARGEST_HYBRID} members in a hybrid epoch", f"{len(roster.bundles)}")
    drawn = {bundle.node: encapsulate(bytes.fromhex(bundle.kem_key or "")) for bundle in later}
    shown = Reveal(
        node=own,
        roster=roster.digest.hex(),
        nonce=keys.nonce.hex(),
        ciphertexts={name: ciphertext.hex() for name, (_, ciphertext) in drawn.items()},
    )
    secrets = {name: secret for name, (secret, _) in drawn.items()}
    if roster.hybrid:
        secrets[own] = keys.own_secret()
    return OwnReveal(identity.sign("reveal", shown.payload()), secrets)


def verify_reveal(signed: Signed, roster: Roster, node: str) -> None:
    """Check one reveal by itself, as `accept_reveals` checks all.

    Args:
        signed: what a member sent.
        roster: of the epoch.
        node: the member.

    Raises:
        RosterError: no reveal, one of another member or roster, or not what it committed to.

    """
    shown = _read_reveal(signed, roster)
    if shown.node != node:
        refuse(f"a nonce of {node!r}", f"one of {shown.node!r}")
    bundle = next(bundle for bundle in roster.bundles if bundle.node == node)
    _check_reveal(shown, bundle, roster)


def accept_reveals(
    roster: Roster, reveals: Sequence[Signed], own_reveal: Signed | None
) -> tuple[Roster, Mapping[str, bytes]]:
    """Check the reveals that the coordinator relayed.

    1. Each is canonical and signed by its member. 2. It is for this very roster. 3. Everyone
    revealed, once. 4. Every nonce is the one committed to. 5. Our own is among them, unchanged.
    6. In a hybrid epoch each holds a ciphertext for every member of a later name.

    Args:
        roster: what `accept_roster` returned.
        reveals: in any order.
        own_reveal: what this member revealed; None at the coordinator.

    Returns:
        The roster with its graph seed, and the ciphertexts for this member by sender.

    Raises:
        RosterError: the first check that fails; the epoch is over for all.

    """
    parsed = sorted((_read_reveal(signed, roster) for signed in reveals), key=lambda r: r.node)
    if [shown.node for shown in parsed] != list(roster.names):  # 3
        missing = sorted(set(roster.names) - {shown.node for shown in parsed})
        refuse("one nonce of each member", f"{len(parsed)}, missing {missing}")
    for shown, bundle in zip(parsed, roster.bundles, strict=True):
        _check_reveal(shown, bundle, roster)  # 4, 6
    if own_reveal is not None and own_reveal not in reveals:  # 5
        refuse("this member's own nonce, unchanged", "another one, or none")
    nonces = [bytes.fromhex(shown.nonce) for shown in parsed]
    seed = hashlib.sha256(encode_parts(b"graph-seed", roster.digest, *nonces)).digest()
    received = {
        shown.node: bytes.fromhex(shown.ciphertexts[roster.own])
        for shown in parsed
        if roster.own is not None and roster.own in shown.ciphertexts
    }
    return replace(roster, graph_seed=seed), received


def _read_reveal(signed: Signed, roster: Roster) -> Reveal:
    shown = read_signed(Reveal, "reveal", signed, roster.pins)  # 1
    if shown.roster != roster.digest.hex():  # 2
        refuse("nonces revealed for this roster", f"one of {shown.node!r} for another")
    return shown


def _check_reveal(shown: Reveal, bundle: KeyBundle, roster: Roster) -> None:
    nonce = bytes.fromhex(shown.nonce)
    committed = commit_nonce(nonce, roster.federation, roster.epoch, shown.node).hex()
    if committed != bundle.nonce_commitment:
        refuse("the nonce that the bundle commits to", f"another of {shown.node!r}")
    later = {name for name in roster.names if roster.hybrid and name > shown.node}
    if set(shown.ciphertexts) != later:
        refuse("ciphertexts for all later members", f"others from {shown.node!r}")
