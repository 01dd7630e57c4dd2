"""One round of ours in one process, each party's time and traffic counted apart."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.secagg_members import Members
from privacy.dp.lattice import decode, encode, release_variance
from privacy.dp.noise import GaussianSource, SecureGaussian
from privacy.rounds import RoundPlan
from privacy.secagg.coordinator import StreamingSum
from protos.messages import (
    SurvivorSignature,
    SurvivorsRequest,
    UnmaskReply,
    UnmaskRequest,
    Upload,
)

Vector = NDArray[np.float32]

_SIGNATURE_BYTES = 64


@dataclass
class Cost:
    """What one party did: CPU seconds; control messages and their bytes, words not among them."""

    seconds: float = 0.0
    messages: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class DrawnNoise:
    """Noise drawn before the clock starts, handed out again for every stretch of the vector."""

    seeded = False

    def __init__(self) -> None:
        self._noise = SecureGaussian().normal(1 << 16)

    def normal(self, count: int) -> NDArray[np.float64]:
        """See `GaussianSource.normal`."""
        return self._noise[:count]


@dataclass
class OurRound:
    """One round; every message is written, counted and read.

    Attributes:
        updates: one vector per node, fp32 [d], in the order of names.
        dropped: nodes that leave before they upload, the last ones.
        source: of the noise.
        nodes: cost of each node that stayed.
        server: cost of the coordinator.
        open_s: its CPU seconds for the last step alone: shares to seeds, masks off, decoding.

    """

    members: Members
    plan: RoundPlan
    updates: list[Vector]
    dropped: int
    source: GaussianSource
    nodes: dict[str, Cost] = field(init=False)
    server: Cost = field(default_factory=Cost)
    open_s: float = 0.0

    def __post_init__(self) -> None:
        staying = self.members.roster.names[: self._staying]
        self.nodes = {name: Cost() for name in staying}

    def run(self) -> None:
        """Run the round and check the sum."""
        total = self._timed(self.server, StreamingSum, self.plan, self.members.roster)
        for name, update in zip(self.nodes, self.updates, strict=False):
            self._collect(total, name, update)
        request = self._timed(self.server, lambda: total.close().to_bytes())
        signatures = [self._sign(name, request) for name in total.committee]
        self._timed(self.server, total.certify, signatures)
        replies = [self._unmask(total, name) for name in total.committee]
        before = self.server.seconds
        sum_D = self._timed(
            self.server, lambda: decode(total.open_sum(replies).words, self.plan.step)
        )
        self.open_s = self.server.seconds - before
        self._check(sum_D)

    @property
    def _staying(self) -> int:
        return len(self.updates) - self.dropped

    def _collect(self, total: StreamingSum, name: str, update: Vector) -> None:
        """The plan goes out, an upload comes in."""
        cost, node = self.nodes[name], self.members.nodes[name]
        self._passed(self.server, cost, len(self.plan.payload()) + _SIGNATURE_BYTES)
        words = self._timed(cost, encode, update, self.plan.step, self.source)
        body = self._timed(cost, lambda: node.seal_upload(words, self.plan).to_bytes())
        self._passed(cost, self.server, len(body))
        self._timed(self.server, lambda: total.add(Upload.from_bytes(body), words))

    def _sign(self, name: str, request: bytes) -> SurvivorSignature:
        cost, node = self.nodes[name], self.members.nodes[name]
        self._passed(self.server, cost, len(request))
        body: bytes = self._timed(
            cost,
            lambda: node.sign_survivors(
                self.plan, SurvivorsRequest.from_bytes(request).headers
            ).to_bytes(),
        )
        self._passed(cost, self.server, len(body))
        signature: SurvivorSignature = self._timed(self.server, SurvivorSignature.from_bytes, body)
        return signature

    def _unmask(self, total: StreamingSum, name: str) -> UnmaskReply:
        cost, node = self.nodes[name], self.members.nodes[name]
        request = self._timed(self.server, lambda: total.unmask_request(name).to_bytes())
        self._passed(self.server, cost, len(request))
        body = self._timed(
            cost, lambda: node.unmask(self.plan, UnmaskRequest.from_bytes(request)).to_bytes()
        )
        self._passed(cost, self.server, len(body))
        reply: UnmaskReply = self._timed(self.server, UnmaskReply.from_bytes, body)
        return reply

    @staticmethod
    def _timed(cost: Cost, step: Callable[..., Any], *given: Any) -> Any:
        begin = time.process_time()
        result = step(*given)
        cost.seconds += time.process_time() - begin
        return result

    @staticmethod
    def _passed(sender: Cost, receiver: Cost, count: int) -> None:
        for party in (sender, receiver):
            party.messages += 1
        sender.sent_bytes += count
        receiver.received_bytes += count

    def _check(self, sum_D: Vector) -> None:
        """The sum is exact but for noise of the stated variance, which does not go its way."""
        true_D = np.zeros(len(sum_D))
        for update in self.updates[: self._staying]:
            true_D += update
        noise_D = sum_D - true_D
        copies = self._staying if isinstance(self.source, DrawnNoise) else 1
        variance = release_variance(self.plan.step, self._staying) * copies
        along = float(noise_D @ true_D / np.linalg.norm(true_D)) / math.sqrt(variance)
        # Five deviations of a variance of so many samples, where that is more than 5%.
        allowed = max(0.05, 5 * math.sqrt(2 / len(sum_D)))
        assert abs(noise_D.var() / variance - 1) < allowed, "the sum is not the members' sum"
        assert abs(along) < 6, "the sum holds more or less than every member once"
