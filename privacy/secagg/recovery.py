"""Seeds from Shamir shares, verified by commitments; and who sent a share that does not fit.

Symbols: u a survivor, v a member that is not in the sum, s_uv the seed they share in a round, b_u
the seed of u's own mask, q the quorum.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb

from privacy.rounds import RoundPlan
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.graph import Group
from privacy.secagg.header import commit_edge, commit_own
from privacy.secagg.shamir import PRIME, combine, suspect_points, wrong_shares

_LARGEST_SEARCH = 2_000


@dataclass(frozen=True, order=True)
class WrongShare:
    """A share that lies off the verified polynomial: its sender or its dealer lied.

    Attributes:
        sender: the committee member that sent the share.
        dealer: the survivor that shared the secret. Whoever recurs over several is the liar.

    """

    sender: str
    dealer: str


@dataclass(frozen=True)
class _Shared:
    """A recovered secret's shares, those beside the trusted ones not looked at yet."""

    dealer: str
    shares: Mapping[int, bytes]


_Basis = tuple[tuple[int, ...], tuple[int, ...]]  # all points, and the trusted ones


class SeedRecovery:
    """Recovers seeds from shares, verified by commitments."""

    def __init__(
        self,
        plan: RoundPlan,
        group: Group,
        replies: Mapping[str, Mapping[tuple[str, str], bytes]],
    ) -> None:
        self._quorum = plan.quorum
        self._plan_digest = plan.digest()
        self._points = {name: place for place, name in enumerate(group.committee, start=1)}
        self._names = {place: name for name, place in self._points.items()}
        self._replies = replies
        self._wrong: set[WrongShare] = set()
        self._unchecked: dict[_Basis, list[_Shared]] = defaultdict(list)

    def wrong_shares(self) -> frozenset[WrongShare]:
        """Name all shares that lie off the polynomials of the seeds that were recovered.

        What none of a choice's secrets gives away is looked at together, which takes a part of the
        time that each secret by itself would.
        """
        for (_, trusted), found in self._unchecked.items():
            for point in suspect_points([each.shares for each in found], trusted, self._quorum):
                for each in found:
                    some = {x: each.shares[x] for x in (*trusted, point)}
                    self._note(each.dealer, some, trusted)
        self._unchecked.clear()
        return frozenset(self._wrong)

    def own_seed(self, dealer: str, commitment: bytes) -> bytes:
        """Recover b_u."""
        shares = self._shares(dealer, dealer)
        for trusted, seed in self._candidates(shares):
            if commit_own(seed, self._plan_digest, dealer) == commitment:
                return self._accept(dealer, shares, trusted, seed)
        return self._fail(dealer, len(shares))

    def edge_seed(self, dealer: str, dropped: str, commitment: bytes) -> bytes:
        """Recover s_uv from the shares that the survivor u dealt."""
        shares = self._shares(dealer, dropped)
        for trusted, seed in self._candidates(shares):
            if commit_edge(seed, self._plan_digest, dealer, dropped) == commitment:
                return self._accept(dealer, shares, trusted, seed)
        return self._fail(dealer, len(shares))

    def _shares(self, dealer: str, what: str) -> dict[int, bytes]:
        """Shares by point, those of senders without a wrong share first."""
        suspected = [wrong.sender for wrong in self._wrong]
        found = {
            self._points[sender]: shares[dealer, what]
            for sender, shares in self._replies.items()
            if (dealer, what) in shares
        }
        order = sorted(found, key=lambda point: (suspected.count(self._names[point]), point))
        return {point: found[point] for point in order}

    def _candidates(self, shares: Mapping[int, bytes]) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Values through q shares each: every choice if there are few, or random ones."""
        usable = [x for x, share in shares.items() if int.from_bytes(share, "big") < PRIME]
        if len(usable) < self._quorum:
            return
        choices: Iterable[tuple[int, ...]] = combinations(usable, self._quorum)
        if comb(len(usable), self._quorum) > _LARGEST_SEARCH:
            choices = self._random_choices(usable)
        for points in choices:
            yield points, combine({x: shares[x] for x in points}, self._quorum)

    def _random_choices(self, usable: list[int]) -> Iterator[tuple[int, ...]]:
        yield tuple(usable[: self._quorum])
        source = secrets.SystemRandom()
        for _ in range(_LARGEST_SEARCH):
            yield tuple(source.sample(usable, self._quorum))

    def _accept(
        self, dealer: str, shares: Mapping[int, bytes], trusted: tuple[int, ...], seed: bytes
    ) -> bytes:
        """Take a seed whose commitment fits; whoever made that hard goes last from now on."""
        if trusted == tuple(shares)[: self._quorum]:
            self._unchecked[tuple(shares), trusted].append(_Shared(dealer, shares))
        else:
            self._note(dealer, shares, trusted)
        return seed

    def _note(self, dealer: str, shares: Mapping[int, bytes], trusted: tuple[int, ...]) -> None:
        for point in wrong_shares(shares, trusted, self._quorum):
            self._wrong.add(WrongShare(self._names[point], dealer))

    def _fail(self, dealer: str, found: int) -> bytes:
        raise SecAggAbort(
            AbortCode.BAD_SHARE,
            f"Expected {self._quorum} shares of a secret of {dealer!r} that fit its commitment, "
            f"got {found} that do not. Wait for more replies, or start a new attempt.",
            (dealer,),
        )
