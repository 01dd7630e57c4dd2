"""One attempt of one round over a channel: collect, certify, open; every outcome has a code."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.channel import Channel
from coordinator.members import Members
from coordinator.patience import Wait
from coordinator.plausibility import check_norm
from coordinator.settings import RunSettings
from privacy.dp.lattice import decode
from privacy.identity import Signed
from privacy.rounds import RoundPlan
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.masks import MaskError
from privacy.secagg.packing import unpack
from protos.messages import (
    Refusal,
    SurvivorSignature,
    UnmaskReply,
    Upload,
)
from protos.round_messages import UploadRequest
from protos.wire import Parcel, WireMessage

_LOG = logging.getLogger("arion.coordinator")
_SPOILT = frozenset({AbortCode.BAD_COUNT, AbortCode.BAD_NORM})
Floats = NDArray[np.float32]
_Result = TypeVar("_Result")
_Message = TypeVar("_Message", SurvivorSignature, UnmaskReply)


@dataclass
class AttemptReport:
    """What happened in an attempt, without anything private.

    Attributes:
        refusals: code and detail by member.
        seconds: by phase.
        spoilt: members of groups whose sum some member of the group spoilt.
        heard: members that answered something, be it with a refusal.
        silent: members that listened and let the deadline of a phase pass.

    """

    heard: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)

    def note_group(self, members: Iterable[str], abort: SecAggAbort) -> None:
        """Note why a group is left out of the attempt."""
        _LOG.warning("the group of %s is left out: %s", ", ".join(members), abort)
        if abort.code in _SPOILT:
            self.spoilt.update(members)


class AttemptRunner:
    """Drives one attempt; nothing it holds tells one member's vector.

    Args:
        plan: the signed plan, parsed and as it was signed.
        members: of the plan's epoch.
        channel: the way to them.
        settings: of the run.
        hung: addresses of members that are not asked where their groups can do without them.

    """

    def __init__(
        self,
        plan: RoundPlan,
        signed: Signed,
        members: Members,
        channel: Channel,
        settings: RunSettings,
        *,
        hung: Set[int] = frozenset(),
    ) -> None:
        self._plan, self._signed = plan, signed
        self._members, self._channel, self._settings = members, channel, settings
        self._hung = hung
        self._sums = [StreamingSum(plan, members.roster, place) for place in range(plan.groups)]
        self.report = AttemptReport()

    def collect(self, recipe: bytes, vector: bytes, only: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Ask for uploads, add them as they come, and fix each group's survivor set.

        Args:
            recipe: the recipe's canonical bytes.
            vector: trainable parameters, fp32 bytes.
            only: members of sets fixed before a restart; empty for new sets.

        Returns:
            The survivors of all groups that go on, sorted.

        Raises:
            SecAggAbort: no group has n_min members, or all of its set fixed before.

        """
        asked = only or self._worth_asking()
        if only:
            self._sums = [each for each in self._sums if set(only) & set(each.group.members)]
        requests = dict.fromkeys(asked, Parcel(UploadRequest(self._signed, recipe), vector))
        is_enough = _never if only else self._can_close
        for name, parcel in self._ask("train.upload", requests, Upload, is_enough):
            assert isinstance(parcel.message, Upload)
            self._add(name, parcel.message, parcel.payload)
        self._each(lambda each: _close(each, only))
        return tuple(sorted(name for each in self._sums for name in each.uploaded))

    def certify(self) -> None:
        """Have each group's committee sign its set.

        Raises:
            SecAggAbort: no group reaches a quorum on one set.

        """
        asked = {name: Parcel(each.close()) for each in self._sums for name in each.committee}
        replies = self._ask_committees(
            "query.survivors", asked, SurvivorSignature, StreamingSum.can_certify
        )
        self._each(lambda each: each.certify(_messages(SurvivorSignature, replies, each)))
        self._note_faults()

    def open(self) -> tuple[Floats, tuple[str, ...]]:
        """Collect shares, open each group's sum, and add up those that honest members make.

        Returns:
            The decoded total, fp32 [vector_length], and whose vectors are in it, sorted.

        Raises:
            SecAggAbort: no group's sum can be opened and used.

        """
        asked = {
            name: Parcel(each.unmask_request(name))
            for each in self._sums
            for name in each.committee
        }
        replies = self._ask_committees("query.unmask", asked, UnmaskReply, StreamingSum.can_open)
        started = time.monotonic()
        sums = self._each(lambda each: self._open(each, _messages(UnmaskReply, replies, each)))
        self.report.seconds["open"] = time.monotonic() - started
        self._note_faults()
        survivors = sorted(name for each in self._sums for name in each.uploaded)
        return sum(sums[1:], sums[0]), tuple(survivors)

    def _open(self, each: StreamingSum, replies: list[UnmaskReply]) -> Floats:
        opened = each.open_sum(replies, threads=torch.get_num_threads())
        for wrong in sorted(opened.wrong_shares):
            _LOG.warning("wrong share: sent by %s, dealt by %s", wrong.sender, wrong.dealer)
        sum_D = decode(opened.words, self._plan.step)
        check_norm(sum_D, self._plan, len(opened.survivors), self._settings.plausible_batches)
        return sum_D

    def _each(self, act: Callable[[StreamingSum], _Result]) -> list[_Result]:
        """Go on with the groups for which a step succeeds; abort where it does for none."""
        results, going_on, aborts = [], [], []
        for each in self._sums:
            try:
                results.append(act(each))
                going_on.append(each)
            except SecAggAbort as abort:
                aborts.append(abort)
                self.report.note_group(each.group.members, abort)
        self._sums = going_on
        if not going_on:
            raise aborts[0]
        return results

    def _add(self, name: str, upload: Upload, payload: bytes) -> None:
        """Add one upload; a bad one is left out and its sender named."""
        try:
            if upload.node != name:
                raise SecAggAbort(
                    AbortCode.BAD_UPLOAD, "Expected the sender's own upload.", (name,)
                )
            ring_bits, length = self._plan.step.ring_bits, self._plan.vector_length
            each = next(each for each in self._sums if name in each.group.neighbours)
            each.add(upload, unpack(payload, ring_bits, length))
        except SecAggAbort as abort:
            self._note_refusal(name, str(abort.code), str(abort))
        except MaskError as error:
            self._note_refusal(name, str(AbortCode.BAD_UPLOAD), str(error))

    def _worth_asking(self) -> tuple[str, ...]:
        """Members that are there, but for those that hung in groups that can do without them."""
        there = self._members.addresses
        well = {name for name, address in there.items() if address not in self._hung}
        asked: set[str] = set()
        for each in self._sums:
            members, committee = set(each.group.members), set(each.group.committee)
            is_enough = self._is_enough(len(well & members), len(well & committee))
            asked |= members & (well if is_enough else there.keys())
        return tuple(sorted(asked))

    def _can_close(self) -> bool:
        """Whether each group can go on with the uploads that it has."""
        return all(self._is_enough(len(e.uploaded), len(e.committee)) for e in self._sums)

    def _is_enough(self, uploads: int, committee: int) -> bool:
        return uploads >= self._plan.n_min and committee >= self._plan.quorum

    def _ask_committees(
        self,
        action: str,
        requests: Mapping[str, Parcel],
        reply: type[_Message],
        is_done: Callable[[StreamingSum, list[_Message]], bool],
    ) -> dict[str, Parcel]:
        """Return replies by name; who is away may be missing where each group is done without."""
        replies: dict[str, Parcel] = {}
        known = {0: False}  # by the number of replies: they are verified once

        def is_enough() -> bool:
            if len(replies) not in known:
                done = (is_done(each, _messages(reply, replies, each)) for each in self._sums)
                known[len(replies)] = all(done)
            return known[len(replies)]

        for name, parcel in self._ask(action, requests, reply, is_enough):
            replies[name] = parcel
        return replies

    def _ask(
        self,
        action: str,
        requests: Mapping[str, Parcel],
        reply: type[WireMessage],
        is_enough: Callable[[], bool],
    ) -> Iterator[tuple[str, Parcel]]:
        """Yield replies by name, until nobody is left to wait for; refusals are noted, left out.

        Args:
            action, requests, reply: see `Channel.exchange`; requests by name.
            is_enough: whether to go on where the others are away.

        """
        started = time.monotonic()
        places = self._members.addresses  # who is away has none
        by_address = {places[name]: each for name, each in requests.items() if name in places}
        wait = Wait(self._channel, is_enough)
        answers = self._channel.exchange(action, by_address, reply, self._settings.deadline_s, wait)
        for address, parcel in answers:
            name = self._members.name_at(address)
            self.report.heard.add(name)
            if isinstance(parcel.message, Refusal):
                self._note_refusal(name, parcel.message.code, parcel.message.detail)
            else:
                yield name, parcel
        phase = action.rsplit(".", maxsplit=1)[-1]
        self.report.seconds[phase] = time.monotonic() - started
        for name in map(self._members.name_at, wait.silent()):
            _LOG.warning("%s: %s: no answer by the deadline; it is asked less often", name, phase)
            self.report.silent.add(name)

    def _note_faults(self) -> None:
        for each in self._sums:
            for name, abort in each.faults.items():
                self._note_refusal(name, str(abort.code), str(abort))

    def _note_refusal(self, name: str, code: str, detail: str) -> None:
        _LOG.warning("%s: %s: %s", name, code, detail)
        self.report.refusals[name] = (code, detail)


def _never() -> bool:
    """A set that is fixed needs everyone."""
    return False


def _close(each: StreamingSum, only: tuple[str, ...]) -> None:
    missing = sorted(set(only) & set(each.group.members) - set(each.uploaded))
    if missing:
        raise SecAggAbort(
            AbortCode.BELOW_N_MIN,
            f"Expected the uploads of a set that was fixed before a restart, got none of "
            f"{missing}. Start a new attempt.",
            tuple(missing),
        )
    each.close()


def _messages(
    kind: type[_Message], replies: Mapping[str, Parcel], each: StreamingSum
) -> list[_Message]:
    """What a group's committee answered, each for itself."""
    found = ((name, replies[name].message) for name in each.committee if name in replies)
    return [m for name, m in found if isinstance(m, kind) and m.node == name]
