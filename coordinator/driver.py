"""A run from its first round to its model: durable at every step, thin over the channel.

After a crash at any instant the same call goes on: an attempt that was under way is taken up again
(nodes send identical bytes), an applied round is recorded exactly once.
"""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from coordinator.attempt import AttemptReport, AttemptRunner, Floats
from coordinator.attempts import Attempt, Phase
from coordinator.cancellation import Cancellation
from coordinator.channel import Channel, Traffic
from coordinator.driver_lock import is_closed
from coordinator.epoch import EpochLost
from coordinator.epochs import Epochs
from coordinator.errors import RestoredLedgerError, RunError, SpentError
from coordinator.member_heads import MemberHeads
from coordinator.outcome import outcome_of, tell_observer
from coordinator.planning import check_reachable, make_plan
from coordinator.records import RunRecords
from coordinator.settings import load_settings
from coordinator.shared import MEMBERS_FOLDER, SharedLedger
from coordinator.store import RunStore
from coordinator.suspicion import warn_of_suspects
from coordinator.witnesses import LONGEST_TURN_S, Witnesses
from models.checkpoint import model_digest
from models.folders import open_model
from models.optimiser import OptimiserState, adam_step
from models.recipe import prepare
from models.vector import read_vector, write_vector
from privacy.dp.lattice import count_near_edge, release_variance
from privacy.identity import IdentityKey
from privacy.rounds import LARGEST_ATTEMPT, RoundPlan, sign_plan
from privacy.secagg.aborts import AbortCode, SecAggAbort
from protos.messages import Refusal
from protos.round_messages import Done, RunClose
from protos.wire import Parcel

IDENTITY_FILE = "identity.key"
_LOG = logging.getLogger("arion.coordinator")


class RunDriver:
    """Drives one run; `run` returns when its last round is recorded, or when it was cancelled.

    Args:
        home: holds run.json; rounds and states live there too.
        channel: the way to the nodes.

    """

    def __init__(self, home: Path, channel: Channel) -> None:
        self.settings, self._is_over = load_settings(home), is_closed(home)
        shared = self.settings.coordinator
        self._key = IdentityKey.load(shared / IDENTITY_FILE)
        self.cancellation = Cancellation(home)
        channel.interrupt, channel.idle = self.cancellation.check, self._tidy
        self._channel = channel
        self._model, _ = open_model(self.settings.base_model)
        prepare(self._model, self.settings.recipe)
        self._store = RunStore(home, is_driven=True)
        self._ledger = SharedLedger(shared)
        self._disk = ThreadPoolExecutor(1, "disk")
        try:
            self._records = RunRecords(self._ledger, self.settings)
            pins = self.settings.members
            heads = MemberHeads(shared / MEMBERS_FOLDER, pins)
            self._witnesses = Witnesses(self._ledger, self._key, pins, channel, heads)
            self._epochs = Epochs(self.settings, channel, heads, self._witnesses, self._store)
            self.state = self._restore()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give files and locks back."""
        self._disk.shutdown()
        self._ledger.close()
        self._store.close()

    def run(self) -> OptimiserState:
        """Carry the run to its end and return the last state.

        A run whose schedule is used up, as attempts were aborted, ends with the rounds it made.

        Raises:
            RunError: the run cannot go on: members are missing, or refuse; the message says who.
            RestoredLedgerError: the ledger is older than a head that a member holds.

        """
        if self._is_over:
            return self.state
        self._take_up()
        try:
            while self.state.step < self.settings.rounds:
                self.cancellation.check()
                self._round()
            self.cancellation.ignore()
        except SecAggAbort as abort:
            if abort.code != AbortCode.CANCELLED:
                raise
            self._end_early(abort)
        except SpentError as error:
            if not self.state.step:
                raise
            made, wanted = self.state.step, self.settings.rounds
            _LOG.warning("the run ends after %d of %d rounds: %s", made, wanted, error)
            self.cancellation.ignore()
            self._finish()
        else:
            self._finish()
        self._tidy()
        self._store.note_closed()
        return self.state

    def _restore(self) -> OptimiserState:
        """Read the state after the last applied round, or start from the base model."""
        last = self._store.last_attempt()
        applied = last is not None and last.phase in (Phase.APPLIED, Phase.RECORDED)
        done = 0 if last is None else last.round - (0 if applied else 1)
        state = self._store.load_state(done)
        if state is None and done:
            raise RunError(
                f"Expected the state after round {done} in the run's home, got none. "
                "Restore the home from a backup."
            )
        if state is None:
            state = OptimiserState.start(read_vector(self._model))
            self._store.save_state(state)
        self._write(state.vector_D)
        return state

    def _write(self, vector_D: Tensor) -> None:
        """Set the model's parameters, name it anew, and spell what nodes are sent of it."""
        write_vector(self._model, vector_D)
        self._digest = model_digest(self._model)
        self._vector = vector_D.numpy().astype("<f4", copy=False).tobytes()

    def _tidy(self) -> None:
        """Delete states that are no longer needed; the disk is busy with that for a while."""
        self._store.drop_states(self.state.step)

    def _take_up(self) -> None:
        """Write what a crash kept from being written."""
        last = self._store.last_attempt()
        if last is None:
            self._records.open(self._digest)
        elif last.phase == Phase.APPLIED:
            self._record(last)
        elif last.phase == Phase.ABORTED:
            self._records.aborted(last)

    def _round(self) -> None:
        """Make one attempt at the next round."""
        attempt = self._attempt()
        plan = RoundPlan.from_payload(attempt.plan.payload)
        members = self._epochs.of(plan)
        runner = AttemptRunner(
            plan, attempt.plan, members, self._channel, self.settings, hung=self._epochs.hung()
        )
        before = replace(self._channel.traffic)
        try:
            sum_D, attempt = self._sum(runner, attempt)
        except SecAggAbort as abort:
            spoilt = tuple(sorted(runner.report.spoilt))
            attempt = self._abort(replace(attempt, spoilt=spoilt), abort)
            self._witnesses.collect(members, self.settings.deadline_s, runner.report.heard)
            self._tell(attempt, runner.report, before)
            self._epochs.leave_after(runner.report)
            if abort.code == AbortCode.CANCELLED:
                raise
            check_reachable(runner.report, plan, len(self._store.attempts()))
            return
        near_edge = self._apply(sum_D, attempt, plan)
        started = time.monotonic()
        self._witnesses.collect(members, self.settings.deadline_s, runner.report.heard)
        runner.report.seconds["ledger"] = time.monotonic() - started
        self._tell(attempt, runner.report, before, near_edge)
        self._epochs.leave_after(runner.report)

    def _attempt(self) -> Attempt:
        """Take up the attempt that was under way, or plan and sign a new one."""
        last = self._store.last_attempt()
        number, made = self.state.step + 1, 0
        if last is not None and last.round == number:
            if last.phase != Phase.ABORTED and self._epoch_stands(last):
                return last
            made = last.attempt
        if made == LARGEST_ATTEMPT:
            is_spent = len(self._store.attempts()) > self.settings.step.releases
            raise (SpentError if is_spent else RunError)(
                f"Expected round {number} to succeed within {LARGEST_ATTEMPT} attempts, got all "
                "of them aborted. The log says who and why; a new run reserves a new schedule."
            )
        plan = make_plan(
            self.settings,
            self._model,
            self._digest,
            self._epochs.for_new_plan(),
            number=number,
            attempt=made + 1,
        )
        attempt = Attempt(number, made + 1, Phase.UPLOADING, sign_plan(self._key, plan))
        self._store.save(attempt)
        return attempt

    def _epoch_stands(self, attempt: Attempt) -> bool:
        """Tell whether members still hold the keys of an attempt's epoch; else it is aborted."""
        try:
            self._epochs.of(RoundPlan.from_payload(attempt.plan.payload))
        except EpochLost as error:
            self._abort(attempt, SecAggAbort(AbortCode.EPOCH_LOST, str(error)))
            return False
        return True

    def _sum(self, runner: AttemptRunner, attempt: Attempt) -> tuple[Floats, Attempt]:
        recipe = self.settings.recipe_json()
        survivors = runner.collect(recipe, self._vector, attempt.survivors)
        attempt = replace(attempt, phase=Phase.SURVIVORS, survivors=survivors)
        self._store.save(attempt)
        runner.certify()
        sum_D, survivors = runner.open()
        spoilt = tuple(sorted(runner.report.spoilt))
        return sum_D, replace(attempt, survivors=survivors, spoilt=spoilt)

    def _apply(self, sum_D: Floats, attempt: Attempt, plan: RoundPlan) -> int:
        """Take the optimiser's step and record it; return coordinates near the ring's edge."""
        self.state = adam_step(
            self.state,
            torch.from_numpy(sum_D),
            plan.step.expected_batch,
            self.settings.optimiser,
            self.settings.rounds,
            noise_variance=release_variance(plan.step, len(attempt.survivors)),
            in_place=True,  # the old one is on the disk
        )
        saved = self._disk.submit(self._store.save_state, self.state)  # beside what follows
        self._write(self.state.vector_D)
        if self.state.step < self.settings.rounds:
            self._channel.stage(self._vector)
        self._store.drop_states(self.state.step - 1)  # of rounds that were never idle
        saved.result()
        attempt = replace(attempt, phase=Phase.APPLIED)
        self._store.save(attempt)
        self._record(attempt)
        return count_near_edge(sum_D, plan.step)

    def _record(self, attempt: Attempt) -> None:
        self._records.recorded(attempt, self._digest)
        self._store.save(replace(attempt, phase=Phase.RECORDED))

    def _abort(self, attempt: Attempt, abort: SecAggAbort) -> Attempt:
        """End an attempt for good; its uploads stay charged at the nodes that made them."""
        _LOG.warning("round %d attempt %d: %s", attempt.round, attempt.attempt, abort)
        attempt = replace(attempt, phase=Phase.ABORTED, survivors=(), code=str(abort.code))
        self._store.save(attempt)
        self._records.aborted(attempt)
        return attempt

    def _tell(
        self, attempt: Attempt, report: AttemptReport, before: Traffic, near_edge: int = 0
    ) -> None:
        traffic = self._channel.traffic.since(before)
        tell_observer(outcome_of(attempt, report, traffic, near_edge, self._digest), self.state)
        if attempt.spoilt:
            warn_of_suspects(self._store.attempts())

    def _finish(self) -> None:
        """Hand the model out, tell the nodes, and have the ledger countersigned a last time.

        Members that are away keep a run whose rounds are made from nothing: those there are told,
        and the next run's head covers the entry.
        """
        self._write(self.state.average_D)
        self._records.released(self._digest)
        try:
            self._epochs.for_new_plan()
        except RestoredLedgerError:
            raise
        except RunError as error:
            _LOG.error("the last head is not countersigned: %s", error)
        self._tell_closed()

    def _end_early(self, abort: SecAggAbort) -> None:
        """Abort what is under way, and tell the nodes that the run makes no more releases.

        The model of the rounds that were made is handed out: it is paid for.
        """
        last = self._store.last_attempt()
        if last is None:
            return  # no node has heard of it
        if last.phase in (Phase.UPLOADING, Phase.SURVIVORS):
            self._abort(last, abort)
        if self.state.step:
            self._write(self.state.average_D)
            self._records.released(self._digest)
        self._tell_closed()

    def _tell_closed(self) -> None:
        """Tell the nodes that the run is over, and show those of the epoch the newest head."""
        members = self._epochs.members
        there = set(self._channel.addresses(0, 0.0))  # who was left over or refused, too
        self._close_at(there if members is None else there | set(members.addresses.values()))
        if members is not None:
            self._witnesses.collect(members, self.settings.deadline_s)

    def _close_at(self, addresses: Iterable[int]) -> None:
        request = Parcel(RunClose(self.settings.federation, self.settings.run))
        requests = dict.fromkeys(addresses, request)
        deadline_s = min(self.settings.deadline_s, LONGEST_TURN_S)
        for address, parcel in self._channel.exchange("query.close", requests, Done, deadline_s):
            if isinstance(parcel.message, Refusal):
                _LOG.warning("%s: %s", self._channel.label(address), parcel.message.detail)
