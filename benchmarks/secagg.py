"""What a masked sum costs: masks beside the bare cipher, a round beside Flower's SecAgg+.

Masks. Limit: AES-256-CTR of the same library into a buffer in cache, chunks of the same size, in
turn. A mask is one neighbour's keystream, expanded and added.

A round. Peer: Flower's SecAgg+ (see `benchmarks.secagg_flower`), complete graph, the same shares
and threshold, a ring of 32 bits. Ours: w = 16, complete graph. CPU seconds of one process, one
thread each; peer and ours in turn, medians; every sum is checked against the true one.

* Node, ours: encoding, masks, digest of the words, commitments, Shamir shares, sealing, header and
  its signature, the control message's bytes, the survivor set read and signed, packets opened, the
  reply; claims and records in the node's SQLite store. X25519 secrets are agreed on once per epoch
  and not counted; Flower's keys are of the round and are counted. Not counted: training, the plan's
  verification, sealing to disk.
* Node, Flower: keys, shares of two secrets, their encryption; weighing, stochastic rounding, masks;
  shares handed back.
* Server, ours: control messages parsed, headers and signatures, digest of the words, the sum, the
  certificate, requests, shares verified and combined, masks off, decoding. Flower: the sum, shares
  combined, masks off, the mean.
* A private step draws its noise while it encodes, and Flower's SecAgg+ draws none. So a node is
  shown twice: with noise drawn beforehand, beside SecAgg+ alone; and with its noise from a CSPRNG,
  beside SecAgg+ with `numpy.random.normal`, as Flower's local differential privacy draws it.

Drop-outs leave before they upload. Of 4 nodes one may leave: with 2 gone the 3 signatures that one
tolerated colluder asks for cannot be had, and the round aborts.
"""

import gc
import logging
import statistics
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.harness import Row, context, interleave, main, paired_ratio
from benchmarks.secagg_flower import FlowerRound
from benchmarks.secagg_members import COLLUDERS, Members, join
from benchmarks.secagg_round import DrawnNoise, OurRound, Vector
from client.outbox import Outbox
from privacy.dp.lattice import encode
from privacy.dp.noise import SecureGaussian
from privacy.rounds import RoundPlan
from privacy.secagg.masks import CHUNK_BYTES, Mask, apply_masks
from privacy.secagg.packing import pack

PEER, LIMIT = "Flower SecAgg+", "AES-256-CTR"
PACKAGES = ["numpy", "cryptography", "flwr"]
SCALE = 0.1


def run(quick: bool) -> Iterator[Row]:
    """Yield the rows: masks, then rounds of every size."""
    torch.set_num_threads(1)
    yield from mask_rows(10 if quick else 40)
    for length in (1_000_000,) if quick else (1_000_000, 10_000_000):
        for nodes, dropped in ((4, 0), (4, 1), (8, 0), (8, 2)):
            yield from round_rows(Case(nodes, dropped, length), 3 if quick else 7)


def mask_rows(repetitions: int) -> Iterator[Row]:
    """Yield the rate of masking 10M words, per neighbour."""
    words = np.zeros(10_000_000, "<u2")
    for neighbours in (3, 7, 31):
        masks = [Mask(bytes([place]) * 32, 1) for place in range(neighbours)]
        work = words.nbytes * neighbours
        steps = {"ours": lambda m=masks: apply_masks(words, m), LIMIT: bare_cipher(work)}
        seconds = interleave(steps, repetitions)
        rates = {name: work / statistics.median(found) / 1e9 for name, found in seconds.items()}
        yield Row(
            f"masks, {neighbours} neighbours", rates["ours"], "GB/s per neighbour", limit=LIMIT,
            limit_value=rates[LIMIT], ratio_to_limit=paired_ratio(seconds[LIMIT], seconds["ours"]),
            context=context(PACKAGES, neighbours=neighbours, words=len(words), threads=1,
                            chunk_bytes=CHUNK_BYTES, repetitions=repetitions),
        )  # fmt: skip


def bare_cipher(count: int) -> Callable[[], None]:
    """Return a step that expands `count` bytes of keystream into one buffer."""
    zeros = memoryview(bytes(CHUNK_BYTES))
    room = memoryview(bytearray(CHUNK_BYTES + 16))

    def step() -> None:
        stream = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
        for start in range(0, count, CHUNK_BYTES):
            stream.update_into(zeros[: min(CHUNK_BYTES, count - start)], room)

    return step


@dataclass(frozen=True)
class Case:
    """A size of round."""

    nodes: int
    dropped: int
    length: int

    def __str__(self) -> str:
        left = f", {self.dropped} left" if self.dropped else ""
        return f"{self.nodes} nodes{left}, {self.length // 10**6}M"


def round_rows(case: Case, repetitions: int) -> Iterator[Row]:
    """Yield a round's rows: node without and with noise, server, wire, memory."""
    generator = np.random.default_rng(0)
    updates = [
        (generator.standard_normal(case.length) * SCALE).astype(np.float32)
        for _ in range(case.nodes)
    ]
    with tempfile.TemporaryDirectory() as folder:
        members = join([f"node-{place}" for place in range(case.nodes)], Path(folder))
        pairs = Pairs(case, members, updates)
        for repetition in range(repetitions + 1):
            pairs.turn(counted=repetition > 0)
        yield from pairs.rows(repetitions)
        if not case.dropped:
            yield memory_row(case, members, updates[0], pairs.next_plan(), Path(folder))


class Pairs:
    """Rounds of ours and of Flower's in turn, and what each took."""

    def __init__(self, case: Case, members: Members, updates: list[Vector]) -> None:
        self._case, self._members, self._updates = case, members, updates
        self._rounds = 0
        self._seconds: dict[str, tuple[list[float], list[float]]] = {}
        self._bytes = (0, 0)

    def next_plan(self) -> RoundPlan:
        self._rounds += 1
        least = max(self._case.nodes - self._case.dropped, COLLUDERS + 1)
        return self._members.plan(self._rounds, self._case.length, least)

    def turn(self, *, counted: bool) -> None:
        """Run a round of each, without noise of its own and with."""
        for label, source in (("", DrawnNoise()), (" with noise", SecureGaussian())):
            plan, case = self.next_plan(), self._case
            std = plan.step.node_noise_std if label else 0.0
            ours = OurRound(self._members, plan, self._updates, case.dropped, source)
            peer = FlowerRound(self._updates, plan.quorum, case.dropped, std)
            ours.run()
            peer.run()
            first = next(iter(ours.nodes.values()))
            self._bytes = first.sent_bytes + 2 * case.length, peer.upload_bytes
            if not counted:
                continue
            node_s = statistics.fmean(cost.seconds for cost in ours.nodes.values())
            self._note(f"node{label}", node_s, statistics.fmean(peer.node_s))
            if not label:
                self._note("server", ours.server.seconds, peer.server_s)
                self._note("server, opening alone", ours.open_s, peer.unmask_s)

    def rows(self, repetitions: int) -> Iterator[Row]:
        """Yield times and bytes."""
        case = self._case
        fields = context(
            PACKAGES, threads=1, ring_bits=16, repetitions=repetitions, machine="shared",
            nodes=case.nodes, dropped=case.dropped, length=case.length,
        )  # fmt: skip
        for label, (ours, peer) in self._seconds.items():
            spread = sorted(p / o for p, o in zip(peer, ours, strict=True))
            yield Row(
                f"{label}, {case}", statistics.median(ours), "s", PEER, statistics.median(peer),
                paired_ratio(peer, ours),
                context={**fields, "ratio_to_peer_range": [spread[0], spread[-1]]},
            )  # fmt: skip
        ours_bytes, peer_bytes = (count / case.length for count in self._bytes)
        yield Row(
            f"sent by a node, {case}", ours_bytes, "B/parameter", PEER, peer_bytes,
            peer_bytes / ours_bytes, "16 bits", 2.0, ours_bytes / 2.0, fields,
        )  # fmt: skip

    def _note(self, label: str, ours: float, peer: float) -> None:
        found = self._seconds.setdefault(label, ([], []))
        found[0].append(ours)
        found[1].append(peer)


def memory_row(case: Case, members: Members, update: Vector, plan: RoundPlan, folder: Path) -> Row:
    """Largest sum of live allocations beyond the update, from encoding to the sealed file."""
    name, outbox = members.roster.names[0], Outbox(folder / "outbox")
    source = SecureGaussian()
    gc.collect()
    tracemalloc.start()
    words = encode(update, plan.step, source)
    upload = members.nodes[name].seal_upload(words, plan)
    outbox.seal(plan.digest(), upload, pack(words, plan.step.ring_bits))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Row(
        f"node memory, {case}", peak_bytes / case.length, "B/parameter", limit="16 bits",
        limit_value=2.0, ratio_to_limit=peak_bytes / case.length / 2.0,
        context=context(PACKAGES, threads=1, ring_bits=16, nodes=case.nodes, length=case.length),
    )  # fmt: skip


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(run)
