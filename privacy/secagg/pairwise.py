"""Pairwise secrets, and a round's seeds from them.

A revealed round seed tells nothing about another round: seeds are one-way expansions of a secret
that never leaves its two owners.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from privacy.secagg.kdf import encode_parts, expand, hkdf
from privacy.secagg.keys import EpochKeys, Kind
from privacy.secagg.roster import Roster


@dataclass(frozen=True)
class PairwiseKeys:
    """Pairwise secrets of one member in an epoch: HKDF over the X25519 secret.

    Where the epoch is hybrid, over that secret and an ML-KEM-768 one: to learn the result, both
    must be broken.

    Formal guarantee: the salt is the roster's digest, so two members who were shown different
    rosters share no secret, and their packets and masks do not match.

    Source: RFC 5869; NIST SP 800-56C rev. 2, section 2 (a hybrid secret Z || T).
    """

    keys: EpochKeys
    roster: Roster
    kem_secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    _cache: dict[tuple[Kind, str], bytes] = field(default_factory=dict, repr=False)

    def prk(self, kind: Kind, peer: str) -> bytes:
        """Return the pairwise secret with a peer for one purpose, 32 bytes; never leaves here."""
        if (kind, peer) not in self._cache:
            secret = self.keys.exchange(kind, self.roster.public_key(kind, peer))
            if self.roster.hybrid:
                secret += self.kem_secrets[peer]
            info = encode_parts(kind.encode(), *_sorted_pair(self.own, peer))
            self._cache[kind, peer] = hkdf(secret, self.roster.digest, info)
        return self._cache[kind, peer]

    def round_seed(self, peer: str, plan_digest: bytes) -> bytes:
        """Return the seed of the mask that this member and a peer share in one round, 32 bytes."""
        pair = _sorted_pair(self.own, peer)
        return expand(self.prk("mask", peer), b"seed", plan_digest, *pair)

    @property
    def own(self) -> str:
        """Name of the member whose keys these are."""
        assert self.roster.own is not None, "the coordinator holds no pairwise keys"
        return self.roster.own


def _sorted_pair(first: str, second: str) -> tuple[bytes, bytes]:
    low, high = sorted((first, second))
    return low.encode(), high.encode()
