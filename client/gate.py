"""The single exit: nothing derived from data leaves the node but through `Gate.release`.

The order, each step durable before the next: verify the plan; recompute event and epsilon; refuse,
or reserve the schedule; train, noise, encode, mask; seal to the outbox; debit naming the sealed
digest; release. After a crash: without a debit the sealed file is deleted and all is drawn anew;
with one, the identical bytes are sent again. Aborted attempts are never refunded.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.budget import NodeBooks
from client.entropy import Entropy
from client.outbox import Outbox, SealedUpload
from privacy.consent import Consent
from privacy.dp.lattice import encode
from privacy.dp.plan import PrivateStep
from privacy.dp.sampling import PoissonSampler
from privacy.identity import Signed
from privacy.rounds import PlanCode, PlanRefused, RoundPlan, verify_plan
from privacy.secagg.node import SecAggNode


class Trainer(Protocol):
    """What the gate asks of local training."""

    @property
    def unit_count(self) -> int:
        """Privacy units of this node."""

    def clipped_sum(self, drawn: NDArray[np.int64], step: PrivateStep) -> NDArray[np.float32]:
        """Sum of clipped gradients over the drawn units, fp32 [vector_length]."""


@dataclass(frozen=True)
class Gate:
    """One node's exit.

    Attributes:
        consent: what the institution agreed to; nothing the coordinator sends widens it.
        books: the node's ledger.
        outbox: sealed uploads.
        runtime: where this node really runs.
        seed: of a seeded simulation; None elsewhere.
        today: the day, for the clause `expires`.

    """

    consent: Consent
    books: NodeBooks
    outbox: Outbox
    runtime: str
    seed: int | None
    today: Callable[[], date] = date.today

    def release(
        self, signed: Signed, member: SecAggNode, open_trainer: Callable[[RoundPlan], Trainer]
    ) -> SealedUpload:
        """Take part in a round: the one way to make a `SealedUpload`.

        Args:
            signed: the coordinator's plan.
            member: this node's keys and memory in the epoch.
            open_trainer: returns the trainer set to the plan's model, or raises PlanRefused.

        Returns:
            The sealed upload: the one already debited under this plan, or a new one.

        Raises:
            PlanRefused: written to the ledger before it is raised; nothing was released.

        Formal guarantee: whatever happens in between, at most one sealed upload per plan ever
        leaves, and a debit that names its digest is on the disk before it does.

        """
        plan_digest = _digest_of(signed)
        try:
            if (debit := self.books.debit_of(plan_digest)) is not None:
                return self._resend(plan_digest, debit.sealed_digest)
            self._forget_unfinished(plan_digest, member)
            plan = self._verified(signed, member)
            trainer = open_trainer(plan)
            self._check_trainer_seed(plan)
            self.books.reserve(plan)
        except PlanRefused as refusal:
            self.books.refuse(refusal, plan_digest)
            raise
        sealed = self._seal(plan, member, trainer)
        self.books.debit(plan, sealed.digest)
        return sealed

    def _verified(self, signed: Signed, member: SecAggNode) -> RoundPlan:
        run = _run_of(signed)
        return verify_plan(
            signed,
            self.consent,
            coordinator_key=bytes.fromhex(self.consent.coordinator_key),
            roster=member.roster,
            runtime=self.runtime,
            last_seen=member.store.last_seen(self.consent.federation, run),
            spent=self.books.spent_elsewhere(run),
            today=self.today(),
        )

    def _seal(self, plan: RoundPlan, member: SecAggNode, trainer: Trainer) -> SealedUpload:
        place = (member.name, plan.run, plan.round, plan.attempt)
        entropy = Entropy(self.seed if plan.seeded else None)
        sampler = PoissonSampler(plan.step.sampling_probability, entropy.uniform(*place))
        drawn = sampler.draw(trainer.unit_count)
        gaussian = entropy.gaussian(*place) if plan.step.is_private else None
        words = encode(trainer.clipped_sum(drawn, plan.step), plan.step, gaussian)
        upload = member.seal_upload(words, plan)
        return self.outbox.seal(plan.digest(), upload, words)

    def _check_trainer_seed(self, plan: RoundPlan) -> None:
        if plan.seeded and self.seed is None:
            raise PlanRefused(
                PlanCode.SEEDED,
                "allow_seeded_simulation",
                "Expected noise from this node's own entropy, got a seeded plan and no seed here. "
                "Only `arion simulate` runs seeded rounds.",
            )

    def _resend(self, plan_digest: bytes, sealed_digest: str) -> SealedUpload:
        sealed = self.outbox.load(plan_digest)
        if sealed is None or sealed.digest != sealed_digest:
            raise PlanRefused(
                PlanCode.OLD_ROUND,
                "",
                "Expected the sealed upload that was debited, got none or other bytes in the "
                "outbox. Start a new attempt; this one stays charged.",
            )
        return sealed

    def _forget_unfinished(self, plan_digest: bytes, member: SecAggNode) -> None:
        """Undo what a crash left behind: nothing of it was debited, so nothing left the node."""
        if member.store.is_claimed(plan_digest):
            self.outbox.delete(plan_digest)
            member.store.withdraw_claim(plan_digest)


def _digest_of(signed: Signed) -> bytes:
    return hashlib.sha256(signed.payload).digest()


def _run_of(signed: Signed) -> str:
    """Name the run that a plan claims to belong to; `verify_plan` decides whether it does."""
    return RoundPlan.from_payload(signed.payload).run
