"""The single exit: nothing derived from data leaves the node but through a `Gate`.

The order, each step durable before the next: the consent still stands; verify the plan; recompute
event and epsilon; refuse, or reserve the schedule (a filter reserves nothing, and is asked here and
before the debit); train, noise, encode, mask; seal to the outbox; the consent still stands; debit
naming the sealed digest; release. After a crash: without a debit
the sealed file is deleted and all is drawn anew; with one, the identical bytes are sent again.
Aborted attempts are never refunded.

A round's upload leaves by `Gate.release`, a module of owned experts by `Gate.release_experts`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from client.budget import NodeBooks
from client.entropy import Entropy
from client.module_outbox import ModuleOutbox, SealedModule, facts_of
from client.outbox import Outbox, SealedUpload
from client.release import Trainer, release_words
from privacy.budget_clauses import check_consent_stands, check_expiry, require
from privacy.consent import Consent
from privacy.dp.accountant import epsilon_microunits
from privacy.experts_job import ExpertsJob, verify_job
from privacy.identity import Signed
from privacy.ledger.entries import ExpertsDebited
from privacy.rounds import PlanCode, PlanRefused, RoundPlan, verify_plan
from privacy.secagg.node import SecAggNode
from privacy.secagg.packing import pack
from privacy.units import INSTITUTION


class ExpertsTrainer(Protocol):
    """What the gate asks of the training of owned experts."""

    def train(self) -> Mapping[str, Tensor]:
        """Train from where a crash left it, or from the start; return the module's tensors."""


@dataclass(frozen=True)
class Gate:
    """One node's exit.

    Attributes:
        consent: what the institution agreed to; nothing the coordinator sends widens it.
        consent_file: where it was read from, and must still stand.
        books: the node's ledger.
        outbox: sealed uploads.
        modules: modules of owned experts, in training and sealed.
        runtime: where this node really runs.
        seed: of a seeded simulation; None elsewhere.
        today: the day, for the clause `expires`.

    """

    consent: Consent
    consent_file: Path
    books: NodeBooks
    outbox: Outbox
    modules: ModuleOutbox
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
            self._check_consent()
            if (debit := self.books.debit_of(plan_digest)) is not None:
                return self._resend(plan_digest, debit.sealed_digest)
            self._forget_unfinished(plan_digest, member)
            plan = self._verified(signed, member)
            trainer = open_trainer(plan)
            _check_whole(plan, trainer)
            self._check_seed(plan.seeded)
            self.books.reserve(plan)
        except PlanRefused as refusal:
            self.books.refuse(refusal, plan_digest)
            raise
        sealed = self._seal(plan, member, trainer)
        self._check_consent_again(plan_digest)
        self.books.debit(plan, sealed.digest)
        return sealed

    def release_experts(
        self, job: ExpertsJob, open_training: Callable[[Path], ExpertsTrainer]
    ) -> SealedModule:
        """Train and release a module of owned experts: the one way to make a `SealedModule`.

        Args:
            job: what the institution ordered.
            open_training: returns the training whose state lies in the given folder, base and data
                read and checked; nothing is computed from the data yet.

        Returns:
            The sealed module: the one already debited under this job, or a new one.

        Raises:
            PlanRefused: written to the ledger before it is raised; nothing was released.

        Formal guarantee: whatever happens in between, at most one module per job ever leaves, and
        a debit that names its digest is on the disk before it does. What a run reserved covers one
        module, so a job that starts again charges nothing and releases nothing more.

        """
        digest = job.digest()
        try:
            self._check_consent()
            if (debit := self.books.debit_of_experts(digest)) is not None:
                return self._same_module(digest, debit)
            self.modules.forget_unfinished(digest)
            epsilon = verify_job(
                job,
                self.consent,
                node=self.books.name,
                runtime=self.runtime,
                spent=self.books.spent_elsewhere(job.run),
                today=self.today(),
            )
            self._check_seed(job.seeded)
            training = open_training(self.modules.workshop(digest))
            entry = self.books.reserve_experts(job, epsilon)
        except PlanRefused as refusal:
            self.books.refuse(refusal, digest)
            raise
        facts = facts_of(job, epsilon_microunits(epsilon), self.books.name, entry)
        sealed = self.modules.seal(digest, training.train(), facts)
        self._check_consent_again(digest)
        self.books.debit_experts(job, sealed.digest, sealed.card_digest)
        self.modules.forget_training(digest)
        return sealed

    def _check_consent(self) -> None:
        check_consent_stands(self.consent, self.consent_file)
        check_expiry(self.consent, self.today())

    def _check_consent_again(self, digest: bytes) -> None:
        """Refuse what was made while the consent ended; unsent, it is deleted at the next try."""
        try:
            self._check_consent()
        except PlanRefused as refusal:
            self.books.refuse(refusal, digest)
            raise

    def _same_module(self, job_digest: bytes, debit: ExpertsDebited) -> SealedModule:
        sealed = self.modules.load(job_digest)
        debited = (debit.sealed_digest, debit.card_digest)
        if sealed is None or (sealed.digest, sealed.card_digest) != debited:
            raise PlanRefused(
                PlanCode.OLD_ROUND,
                "",
                "Expected the sealed module that was debited, got none or other bytes in this "
                "node's home. Order a new run; this one stays charged.",
            )
        self.modules.forget_training(job_digest)
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
            spent=self.books.spent_elsewhere(run, apart=True),
            today=self.today(),
        )

    def _seal(self, plan: RoundPlan, member: SecAggNode, trainer: Trainer) -> SealedUpload:
        place = (member.name, plan.run, plan.round, plan.attempt)
        entropy = Entropy(self.seed if plan.seeded else None)
        words = release_words(trainer, plan.step, entropy, place)
        upload = member.seal_upload(words, plan, threads=torch.get_num_threads())
        return self.outbox.seal(plan.digest(), upload, pack(words, plan.step.ring_bits))

    def _check_seed(self, seeded: bool) -> None:
        if seeded and self.seed is None:
            raise PlanRefused(
                PlanCode.SEEDED,
                "allow_seeded_simulation",
                "Expected noise from this node's own entropy, got a seeded plan and no seed here. "
                "Only `arion simulate` runs seeded rounds.",
            )

    def _resend(self, plan_digest: bytes, sealed_digest: str) -> SealedUpload:
        sealed = self.outbox.load(plan_digest, sealed_digest)
        if sealed is None:
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


def _check_whole(plan: RoundPlan, trainer: Trainer) -> None:
    """Refuse to add up parts that were clipped apart under a plan for the whole institution."""
    require(
        plan.step.unit != INSTITUTION or trainer.unit_count == 1,
        PlanCode.WRONG_UNIT,
        "unit",
        f"the whole institution as one unit, got {trainer.unit_count} units",
    )


def _digest_of(signed: Signed) -> bytes:
    return hashlib.sha256(signed.payload).digest()


def _run_of(signed: Signed) -> str:
    """Name the run that a plan claims to belong to; `verify_plan` decides whether it does."""
    return RoundPlan.from_payload(signed.payload).run
