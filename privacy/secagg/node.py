"""The member's side of a masked sum: seal an upload, stand for one survivor set, answer once.

Symbols: u, v members, s_uv the seed they share in a round, b_u the seed of u's own mask, A the
survivors, q the quorum. A member gives shares of b_u for u in A, and of s_uv for u in A, v not in
A: never of both kinds for one u, because it signs one A per plan, ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from privacy.identity import IdentityKey, Signed
from privacy.rounds import RoundPlan
from privacy.secagg.graph import Group
from privacy.secagg.header import (
    Header,
    RefusalCode,
    SecAggRefused,
    SurvivorSet,
    commit_edge,
    commit_own,
    digest_commitments,
    digest_words,
    mask_key,
    mask_sign,
    read_survivors,
    upload_digest,
    verify_survivor_signature,
)
from privacy.secagg.masks import Mask, Words, apply_masks, masked_one, word_type
from privacy.secagg.memory import RoundStore, StoreConflict, plan_key
from privacy.secagg.packets import is_packet_of, open_packet, packet_tree, seal_packets
from privacy.secagg.packing import reduce_words
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.roster import Roster
from privacy.secagg.shamir import random_secret, reduce_to_field
from protos.messages import (
    EdgeCommitment,
    EdgeShare,
    ProvenPacket,
    SealedPacket,
    SurvivorShares,
    SurvivorSignature,
    UnmaskReply,
    UnmaskRequest,
    Upload,
)


@dataclass(frozen=True)
class SecAggNode:
    """A member of one epoch. Plans passed in were accepted by `privacy.rounds.verify_plan`.

    Attributes:
        identity: signs headers and survivor sets.
        pairwise: secrets of the epoch, and the roster that its nonces were revealed for.
        store: durable memory.

    """

    identity: IdentityKey = field(repr=False)
    pairwise: PairwiseKeys = field(repr=False)
    store: RoundStore

    @property
    def roster(self) -> Roster:
        """Whose keys the epoch runs on."""
        return self.pairwise.roster

    @property
    def name(self) -> str:
        """Name of this member."""
        assert self.roster.own is not None, "a member's roster holds its own bundle"
        return self.roster.own

    def seal_upload(self, words: Words, plan: RoundPlan, *, threads: int = 1) -> Upload:
        """Mask the words in place, and seal shares of the seeds for the committee.

        Args:
            words: encoded update, shape [vector_length], in the plan's ring; on return, masked.
            plan: the verified plan; claimed durably before anything else happens.
            threads: workers for the masks.

        Returns:
            The control message; send it with `words`, byte-identical or not at all.

        Raises:
            SecAggRefused: another roster's plan, words of another shape, or a plan seen before.

        Formal guarantee: before unmasking, the words are indistinguishable from uniform ones to
        any coalition without this member's keys, with fewer than `plan.quorum` committee members.

        Source: Bonawitz et al. 2017 (doi 10.1145/3133956.3133982), section 6; Ma et al. 2023
        (Flamingo, ePrint 2023/486).

        """
        self._check_plan(plan)
        self._check_words(words, plan)
        try:
            self.store.claim_plan(plan_key(plan), plan.digest())
        except StoreConflict as error:
            raise SecAggRefused(RefusalCode.REPLAYED, str(error)) from error
        seeds = self._draw_seeds(plan)
        masks = self._masks(seeds, plan.digest())
        apply_masks(words, masks, threads=threads)
        reduce_words(words, plan.step.ring_bits)
        return self._seal(words, masked_one(masks, plan.step.ring_bits), plan, seeds)

    def sign_survivors(self, plan: RoundPlan, headers: Sequence[Signed]) -> SurvivorSignature:
        """Stand for a survivor set: one per plan, ever, recorded before this returns.

        Raises:
            SecAggRefused: a plan we did not upload under, or whose committee we are not on; a
                header that is not its member's for this plan; fewer than n_min survivors, one with
                too few neighbours, ourselves not among them; or a second set.

        Formal guarantee: with 2q > m + c and at most c dishonest members on the committee of m, no
        two sets of one plan reach q signatures.

        """
        survivors = self._read_survivors(plan, headers)
        recorded = self.store.record_signed_set(survivors.plan_digest, survivors.digest)
        if recorded != survivors.digest:
            raise SecAggRefused(
                RefusalCode.SECOND_SET,
                "Expected the survivor set that this member signed for this plan, got another: "
                "a member signs one. Start a new attempt.",
            )
        signed = self.identity.sign("survivors", survivors.signed_payload())
        return SurvivorSignature(
            self.name, survivors.plan_digest, survivors.digest, signed.signature
        )

    def unmask(self, plan: RoundPlan, request: UnmaskRequest) -> UnmaskReply:
        """Open the packets of a certified set and return the shares; once, then the same bytes.

        Raises:
            SecAggRefused: a set we did not sign, fewer than q valid signatures on it, or packets
                other than those the certified headers name.

        """
        signed_set = self.store.signed_set(plan.digest())
        survivors = self._read_survivors(plan, request.headers, known=signed_set)
        if signed_set != survivors.digest:
            raise SecAggRefused(
                RefusalCode.NOT_SIGNED,
                "Expected the survivor set that this member signed, got another, or none yet.",
            )
        self._check_quorum(plan, survivors, request.certificate)
        recorded = self.store.unmask_reply(survivors.plan_digest)
        if recorded is None:
            reply = self._open_packets(plan, survivors, request.packets)
            recorded = self.store.record_unmask_reply(survivors.plan_digest, reply.to_bytes())
        return UnmaskReply.from_bytes(recorded)

    def _check_plan(self, plan: RoundPlan) -> None:
        """Repeat the one check of `verify_plan` that the masks rest on."""
        if plan.roster_digest != self.roster.digest.hex() or plan.cohort != self.roster.names:
            raise SecAggRefused(
                RefusalCode.OTHER_ROSTER,
                "Expected a plan for the roster that this member verified, got another. "
                "Fetch the epoch's bundles again.",
            )

    def _check_words(self, words: Words, plan: RoundPlan) -> None:
        expected = word_type(plan.step.ring_bits)
        if words.dtype != expected or words.shape != (plan.vector_length,):
            raise SecAggRefused(
                RefusalCode.BAD_WORDS,
                f"Expected {plan.vector_length} words of {expected}, got shape {words.shape} of "
                f"{words.dtype}. Encode the vector that the plan names.",
            )

    def _draw_seeds(self, plan: RoundPlan) -> dict[str, bytes]:
        """Seeds by neighbour, s_uv, in order; first, under our own name, b_u, drawn anew."""
        own, plan_digest = self.name, plan.digest()
        return {
            peer: random_secret()
            if peer == own
            else reduce_to_field(self.pairwise.round_seed(peer, plan_digest))
            for peer in (own, *sorted(self._group(plan).neighbours[own]))
        }

    def _masks(self, seeds: dict[str, bytes], plan_digest: bytes) -> list[Mask]:
        own = self.name
        return [
            Mask(mask_key(seed, plan_digest), 1 if peer == own else mask_sign(own, peer))
            for peer, seed in seeds.items()
        ]

    def _seal(self, words: Words, count: bytes, plan: RoundPlan, seeds: dict[str, bytes]) -> Upload:
        own, plan_digest = self.name, plan.digest()
        own_commitment = commit_own(seeds[own], plan_digest, own)
        edges = {
            peer: commit_edge(seed, plan_digest, own, peer)
            for peer, seed in seeds.items()
            if peer != own
        }
        words_digest = digest_words(words)
        commitments = digest_commitments(own_commitment, edges)
        packets = seal_packets(
            self.pairwise,
            self._group(plan).committee,
            seeds.values(),
            plan.quorum,
            upload_digest(plan_digest, words_digest, commitments),
        )
        header = Header(
            plan=plan_digest.hex(),
            node=own,
            words=words_digest.hex(),
            count=count.hex(),
            commitments=commitments.hex(),
            packets_root=packet_tree(packets).root().hex(),
        )
        return Upload(
            node=own,
            header=self.identity.sign("header", header.payload()),
            words_digest=words_digest,
            own_commitment=own_commitment,
            edge_commitments=tuple(EdgeCommitment(peer, edges[peer]) for peer in sorted(edges)),
            packets=tuple(SealedPacket(name, packets[name]) for name in sorted(packets)),
        )

    def _group(self, plan: RoundPlan) -> Group:
        return self.roster.group_of(plan, self.name)

    def _read_survivors(
        self, plan: RoundPlan, headers: Sequence[Signed], known: bytes | None = None
    ) -> SurvivorSet:
        self._check_plan(plan)
        if self.name not in self._group(plan).committee:
            raise SecAggRefused(
                RefusalCode.NOT_ON_COMMITTEE,
                "Expected questions to the attempt's committee, which this member is not on.",
            )
        if not self.store.is_claimed(plan.digest()):
            raise SecAggRefused(
                RefusalCode.OTHER_PLAN,
                "Expected a plan that this member uploaded under, got another. The coordinator "
                "showed different plans, or this member's store is behind.",
            )
        survivors = read_survivors(plan, self.roster, headers, known=known)
        if self.name not in survivors.headers:
            raise SecAggRefused(
                RefusalCode.NOT_LISTED,
                "Expected this member among the survivors, because it uploaded, got a set without "
                "it. Start a new attempt.",
            )
        return survivors

    def _check_quorum(
        self, plan: RoundPlan, survivors: SurvivorSet, certificate: Sequence[SurvivorSignature]
    ) -> None:
        signers: set[str] = set()
        for signature in certificate:
            if len(signers) < plan.quorum and self._stands_for(signature, plan, survivors):
                signers.add(signature.node)
        if len(signers) < plan.quorum:
            raise SecAggRefused(
                RefusalCode.NO_QUORUM,
                f"Expected {plan.quorum} valid signatures on one survivor set, got {len(signers)}.",
            )

    def _stands_for(
        self, signature: SurvivorSignature, plan: RoundPlan, survivors: SurvivorSet
    ) -> bool:
        return (
            signature.node in self._group(plan).committee
            and (signature.plan_digest, signature.set_digest)
            == (survivors.plan_digest, survivors.digest)
            and verify_survivor_signature(signature, self.roster)
        )

    def _open_packets(
        self, plan: RoundPlan, survivors: SurvivorSet, packets: Sequence[ProvenPacket]
    ) -> UnmaskReply:
        group, own = self._group(plan), self.name
        by_sender = {packet.node: packet for packet in packets}
        wrong = [
            sender
            for sender, header in survivors.headers.items()
            if sender not in by_sender
            or not is_packet_of(header, own, group.committee, by_sender[sender])
        ]
        if wrong or len(by_sender) != len(survivors.headers):
            # The coordinator's fault: refuse whole, so that our one answer is not spent on it.
            raise SecAggRefused(
                RefusalCode.BAD_PACKET,
                f"Expected the packets that the certified headers name, got others for {wrong}.",
            )
        opened = (
            self._shares(header, by_sender[sender].sealed, group, survivors)
            for sender, header in survivors.headers.items()
        )
        shares = tuple(entry for entry in opened if entry is not None)
        return UnmaskReply(own, survivors.plan_digest, survivors.digest, shares)

    def _shares(
        self, header: Header, sealed: bytes, group: Group, survivors: SurvivorSet
    ) -> SurvivorShares | None:
        """Our shares of one survivor's secrets: its own seed, and those with the dropped."""
        opened = open_packet(self.pairwise, header, sealed, group)
        if opened is None:
            return None
        own_share, edges = opened
        dropped = (peer for peer in edges if peer not in survivors.headers)
        return SurvivorShares(
            header.node, own_share, tuple(EdgeShare(peer, edges[peer]) for peer in dropped)
        )
