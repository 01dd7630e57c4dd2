"""The coordinator's side of a masked sum: add up, certify one survivor set, open the sum.

Symbols: u, v members, s_uv the seed they share in a round, b_u the seed of u's own mask, A the
survivors, q the quorum. No single member's vector can be had here: words are added as they come,
and what opens the sum are seeds of masks over all of A.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from privacy.ledger.merkle import MerkleTree
from privacy.rounds import RoundPlan
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.answers import Shares, sort_replies, sort_signatures
from privacy.secagg.header import (
    Header,
    SecAggRefused,
    SurvivorSet,
    digest_survivors,
    mask_key,
    mask_sign,
    read_survivors,
)
from privacy.secagg.masks import (
    COUNT_BYTES,
    Mask,
    Words,
    apply_masks,
    count_block,
    opened_count,
    word_type,
)
from privacy.secagg.packing import reduce_words
from privacy.secagg.recovery import SeedRecovery, WrongShare
from privacy.secagg.roster import Roster
from privacy.secagg.uploads import check_edges, check_upload, refuse_upload
from protos.messages import (
    ProvenPacket,
    SurvivorSignature,
    SurvivorsRequest,
    UnmaskReply,
    UnmaskRequest,
    Upload,
)


@dataclass(frozen=True)
class OpenedSum:
    """The result of a round.

    Attributes:
        words: sum of the survivors' encodings modulo the ring, shape [vector_length].
        survivors: members in the sum, sorted.
        wrong_shares: shares that were corrected.

    """

    words: Words
    survivors: tuple[str, ...]
    wrong_shares: frozenset[WrongShare]


class StreamingSum:
    """One group's sum in one attempt. Memory: one vector, whatever the number of members.

    Calls in order: `add` per upload, `close`, `certify`, `unmask_request` per member, `open_sum`.
    """

    def __init__(self, plan: RoundPlan, roster: Roster, group: int = 0) -> None:
        """Start an attempt of one group.

        Args:
            plan: the signed plan.
            roster: of the epoch, its nonces revealed.
            group: place in `Roster.groups`.

        """
        assert plan.roster_digest == roster.digest.hex(), "the plan names this roster"
        self._plan = plan
        self._roster = roster
        self.group = roster.groups(plan)[group]
        self._plan_digest = plan.digest()
        self._words: Words = np.zeros(plan.vector_length, word_type(plan.step.ring_bits))
        self._count = count_block(bytes(COUNT_BYTES), plan.step.ring_bits)
        self._uploads: dict[str, Upload] = {}
        self._trees: dict[str, MerkleTree] = {}
        self._survivors: SurvivorSet | None = None
        self._certificate: tuple[SurvivorSignature, ...] = ()
        self._opened: OpenedSum | None = None
        self.faults: dict[str, SecAggAbort] = {}
        """Committee members whose answers were left out, and why."""

    @property
    def uploaded(self) -> tuple[str, ...]:
        """Members whose words are in the sum, sorted."""
        return tuple(sorted(self._uploads))

    @property
    def committee(self) -> tuple[str, ...]:
        """Members in the sum that hold shares of its secrets, sorted."""
        return tuple(name for name in self.group.committee if name in self._uploads)

    def add(self, upload: Upload, words: Words) -> bool:
        """Add one member's masked words.

        Args:
            upload: the control message; its sender was authenticated by the transport.
            words: masked words, shape [vector_length]; not kept.

        Returns:
            True if added, False for an identical resend.

        Raises:
            SecAggAbort: CLOSED, BAD_UPLOAD (also for a second upload with other bytes), or
                BAD_EDGE naming a pair of which one lies about their common seed.

        """
        previous = self._uploads.get(upload.node)
        if previous == upload:
            return False
        if previous is not None:
            refuse_upload(upload, "the bytes that were added before")
        if self._survivors is not None:
            raise SecAggAbort(
                AbortCode.CLOSED,
                f"Expected uploads before the survivor set is fixed, got one of {upload.node!r}.",
                (upload.node,),
            )
        header, tree = self._checked(upload, words)
        check_edges(upload, self._uploads)
        np.add(self._words, words, out=self._words)
        count = count_block(bytes.fromhex(header.count), self._plan.step.ring_bits)
        self._count = self._count + count
        self._uploads[upload.node] = upload
        self._trees[upload.node] = tree
        return True

    def close(self) -> SurvivorsRequest:
        """Fix the survivor set: all members whose words are in the sum.

        Raises:
            SecAggAbort: BELOW_N_MIN or FEW_NEIGHBOURS; start a new attempt.

        """
        headers = tuple(self._uploads[name].header for name in self.uploaded)
        if self._survivors is None:
            if len(headers) < self._plan.n_min:
                raise SecAggAbort(
                    AbortCode.BELOW_N_MIN,
                    f"Expected at least n_min = {self._plan.n_min} uploads, got {len(headers)}. "
                    "Start a new attempt.",
                )
            try:
                # Every one of them was verified as it came.
                known = digest_survivors(self._plan_digest, headers)
                self._survivors = read_survivors(self._plan, self._roster, headers, known=known)
            except SecAggRefused as error:
                # Headers and their number were checked: what is left is the neighbours.
                raise SecAggAbort(AbortCode.FEW_NEIGHBOURS, str(error)) from error
        return SurvivorsRequest(self._plan_digest, headers)

    def certify(self, signatures: Iterable[SurvivorSignature]) -> tuple[SurvivorSignature, ...]:
        """Assemble the certificate of the survivor set.

        Raises:
            SecAggAbort: NO_QUORUM, or EQUIVOCATION naming members that signed another set, where
                too few signed this one; where enough did, those members are in `faults`.

        """
        survivors = self._closed()
        valid, elsewhere = sort_signatures(signatures, survivors, self.group, self._roster)
        if elsewhere:
            abort = SecAggAbort(
                AbortCode.EQUIVOCATION,
                f"Expected signatures on one survivor set, got others by {elsewhere}.",
                tuple(sorted(elsewhere)),
            )
            self.faults |= dict.fromkeys(elsewhere, abort)
            if len(valid) < self._plan.quorum:
                raise abort
        if len(valid) < self._plan.quorum:
            raise SecAggAbort(
                AbortCode.NO_QUORUM,
                f"Expected {self._plan.quorum} signatures, got {len(valid)}. Wait for more, or "
                "start a new attempt.",
            )
        self._certificate = tuple(valid[name] for name in sorted(valid))
        return self._certificate

    def can_certify(self, signatures: Iterable[SurvivorSignature]) -> bool:
        """Tell whether `certify` would succeed; changes nothing."""
        valid, _ = sort_signatures(signatures, self._closed(), self.group, self._roster)
        return len(valid) >= self._plan.quorum

    def unmask_request(self, member: str) -> UnmaskRequest:
        """Return what one committee member needs: the certified set and its sealed packets."""
        survivors = self._closed()
        place = self.group.committee.index(member)
        packets = tuple(
            _proven(self._uploads[sender], self._trees[sender], place)
            for sender in survivors.headers
        )
        headers = tuple(self._uploads[name].header for name in survivors.headers)
        return UnmaskRequest(self._plan_digest, headers, self._certificate, packets)

    def open_sum(self, replies: Iterable[UnmaskReply], *, threads: int = 1) -> OpenedSum:
        """Recover the masks that did not cancel and take them off the sum.

        Args:
            replies: of any committee members; at least q. May be called again with more replies
                after it failed: nothing changes until every seed is recovered.
            threads: workers for the masks.

        Returns:
            The sum, and whose shares were wrong.

        Raises:
            SecAggAbort: NO_QUORUM, BAD_REPLY (a reply about another set, where too few others are
                left; else its sender is in `faults`), BAD_SHARE where no q shares fit a
                commitment, or BAD_COUNT where masks did not cancel.

        """
        if self._opened is not None:
            return self._opened
        survivors = self._closed()
        by_member = self._usable(replies, survivors)
        if len(by_member) < self._plan.quorum:
            raise SecAggAbort(
                AbortCode.NO_QUORUM,
                f"Expected {self._plan.quorum} replies, got {len(by_member)}. Wait for more, or "
                "start a new attempt.",
            )
        recovery = SeedRecovery(self._plan, self.group, by_member)
        masks = list(self._open_masks(survivors, recovery))
        if opened_count(self._count, masks) != len(survivors.headers):
            raise SecAggAbort(
                AbortCode.BAD_COUNT,
                f"Expected a count of {len(survivors.headers)}, got another: a member masked with "
                "other seeds than it committed to, and the sum is worthless. Start a new attempt.",
            )
        apply_masks(self._words, masks, threads=threads)
        reduce_words(self._words, self._plan.step.ring_bits)
        self._opened = OpenedSum(self._words, tuple(survivors.headers), recovery.wrong_shares())
        return self._opened

    def can_open(self, replies: Iterable[UnmaskReply]) -> bool:
        """Tell whether shares are enough for `open_sum`; changes nothing."""
        survivors = self._closed()
        usable, _ = sort_replies(replies, survivors, self.group)
        if len(usable) < self._plan.quorum:
            return False
        try:
            for _ in self._open_masks(survivors, SeedRecovery(self._plan, self.group, usable)):
                pass
        except SecAggAbort:
            return False
        return True

    def _checked(self, upload: Upload, words: Words) -> tuple[Header, MerkleTree]:
        if words.dtype != self._words.dtype or words.shape != self._words.shape:
            refuse_upload(upload, f"{self._words.shape} words of {self._words.dtype}")
        return check_upload(upload, words, self._plan_digest, self._roster, self.group)

    def _open_masks(self, survivors: SurvivorSet, recovery: SeedRecovery) -> Iterator[Mask]:
        """Own masks of the survivors, and masks whose other end is not in the sum, inverted."""
        plan_digest = self._plan_digest
        for name in survivors.headers:
            upload = self._uploads[name]
            own = recovery.own_seed(name, upload.own_commitment)
            yield Mask(mask_key(own, plan_digest), -1)
            for edge in upload.edge_commitments:
                if edge.peer not in survivors.headers:
                    seed = recovery.edge_seed(name, edge.peer, edge.commitment)
                    yield Mask(mask_key(seed, plan_digest), mask_sign(edge.peer, name))

    def _usable(self, replies: Iterable[UnmaskReply], survivors: SurvivorSet) -> dict[str, Shares]:
        """Shares by member; who sent no such thing is in `faults`, unless too few are left."""
        usable, wrong = sort_replies(replies, survivors, self.group)
        self.faults |= {abort.nodes[0]: abort for abort in wrong}
        if wrong and len(usable) < self._plan.quorum:
            raise wrong[0]
        return usable

    def _closed(self) -> SurvivorSet:
        assert self._survivors is not None, "close() fixes the survivor set first"
        return self._survivors


def _proven(upload: Upload, tree: MerkleTree, place: int) -> ProvenPacket:
    """A packet for the committee member of this place, and that the header covers it."""
    return ProvenPacket(
        upload.node, upload.packets[place].sealed, tuple(tree.inclusion_proof(place))
    )
