"""One attempt of one round over a channel: collect, certify, open; every outcome has a code."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from coordinator.channel import Channel
from privacy.identity import Signed
from privacy.rounds import RoundPlan
from privacy.secagg.coordinator import OpenedSum, StreamingSum
from privacy.secagg.masks import MaskError
from privacy.secagg.packing import unpack
from privacy.secagg.recovery import AbortCode, SecAggAbort
from privacy.secagg.roster import Roster
from protos.messages import (
    Refusal,
    SurvivorSignature,
    SurvivorsRequest,
    UnmaskReply,
    UnmaskRequest,
    Upload,
)
from protos.round_messages import UploadRequest
from protos.wire import Parcel, WireMessage

_LOG = logging.getLogger("arion.coordinator")


@dataclass
class Members:
    """Who is who in an epoch: the verified roster and where each member is reached."""

    roster: Roster
    addresses: Mapping[str, int]

    def name_at(self, address: int) -> str:
        """The member at an address."""
        return next(name for name, place in self.addresses.items() if place == address)


@dataclass
class AttemptReport:
    """What happened in an attempt, without anything private.

    Attributes:
        refusals: code and detail by member.
        seconds: by phase.

    """

    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class AttemptRunner:
    """Drives one attempt; nothing it holds tells one member's vector.

    Args:
        plan: the signed plan, parsed and as it was signed.
        members: of the plan's epoch.
        channel: the way to them.
        deadline_s: how long each phase waits.

    """

    def __init__(
        self,
        plan: RoundPlan,
        signed: Signed,
        members: Members,
        channel: Channel,
        deadline_s: float,
    ) -> None:
        self._plan, self._signed = plan, signed
        self._members, self._channel, self._deadline_s = members, channel, deadline_s
        self._sum = StreamingSum(plan, members.roster)
        self.report = AttemptReport()

    def collect(
        self, recipe: bytes, vector: bytes, only: tuple[str, ...] = ()
    ) -> tuple[SurvivorsRequest, tuple[str, ...]]:
        """Ask for uploads, add them as they come, and fix the survivor set.

        Args:
            recipe: the recipe's canonical bytes.
            vector: trainable parameters, fp32 bytes.
            only: members of a set fixed before a restart; empty for a new set.

        Raises:
            SecAggAbort: BELOW_N_MIN, or a member of a fixed set did not answer again.

        """
        asked = only or tuple(self._members.addresses)
        request = Parcel(UploadRequest(self._signed, recipe), vector)
        for name, parcel in self._ask("train.upload", dict.fromkeys(asked, request), Upload):
            assert isinstance(parcel.message, Upload)
            self._add(name, parcel.message, parcel.payload)
        if only and self._sum.uploaded != only:
            missing = sorted(set(only) - set(self._sum.uploaded))
            raise SecAggAbort(
                AbortCode.BELOW_N_MIN,
                f"Expected the uploads of a set that was fixed before a restart, got none of "
                f"{missing}. Start a new attempt.",
                tuple(missing),
            )
        return self._sum.close(), self._sum.uploaded

    def certify(self, request: SurvivorsRequest) -> None:
        """Have the committee sign the set.

        Raises:
            SecAggAbort: NO_QUORUM or EQUIVOCATION.

        """
        asked = dict.fromkeys(self._sum.committee, Parcel(request))
        replies = self._ask("query.survivors", asked, SurvivorSignature)
        signatures = [parcel.message for _, parcel in replies]
        self._sum.certify(s for s in signatures if isinstance(s, SurvivorSignature))

    def open(self) -> OpenedSum:
        """Collect shares and open the sum.

        Raises:
            SecAggAbort: NO_QUORUM, BAD_REPLY or BAD_SHARE.

        """
        asked = {name: Parcel(self._sum.unmask_request(name)) for name in self._sum.committee}
        assert all(isinstance(parcel.message, UnmaskRequest) for parcel in asked.values())
        replies = [parcel.message for _, parcel in self._ask("query.unmask", asked, UnmaskReply)]
        started = time.monotonic()
        shares = [reply for reply in replies if isinstance(reply, UnmaskReply)]
        opened = self._sum.open_sum(shares, threads=torch.get_num_threads())
        self.report.seconds["open"] = time.monotonic() - started
        for wrong in sorted(opened.wrong_shares):
            _LOG.warning("wrong share: sent by %s, dealt by %s", wrong.sender, wrong.dealer)
        return opened

    def _add(self, name: str, upload: Upload, payload: bytes) -> None:
        """Add one upload; a bad one is left out and its sender named."""
        try:
            if upload.node != name:
                raise SecAggAbort(
                    AbortCode.BAD_UPLOAD, "Expected the sender's own upload.", (name,)
                )
            ring_bits, length = self._plan.step.ring_bits, self._plan.vector_length
            self._sum.add(upload, unpack(payload, ring_bits, length))
        except SecAggAbort as abort:
            self._note_refusal(name, str(abort.code), str(abort))
        except MaskError as error:
            self._note_refusal(name, str(AbortCode.BAD_UPLOAD), str(error))

    def _ask(
        self, action: str, requests: Mapping[str, Parcel], reply: type[WireMessage]
    ) -> Iterator[tuple[str, Parcel]]:
        """Yield replies by name; refusals are noted and left out."""
        started = time.monotonic()
        by_address = {self._members.addresses[name]: parcel for name, parcel in requests.items()}
        answers = self._channel.exchange(action, by_address, reply, self._deadline_s)
        for address, parcel in answers:
            name = self._members.name_at(address)
            if isinstance(parcel.message, Refusal):
                self._note_refusal(name, parcel.message.code, parcel.message.detail)
            else:
                yield name, parcel
        phase = action.rsplit(".", maxsplit=1)[-1]
        self.report.seconds[phase] = time.monotonic() - started

    def _note_refusal(self, name: str, code: str, detail: str) -> None:
        _LOG.warning("%s: %s: %s", name, code, detail)
        self.report.refusals[name] = (code, detail)
