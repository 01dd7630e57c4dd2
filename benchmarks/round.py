"""Seconds of a round beyond local training: ours, Flower's deployment engine and NVIDIA FLARE.

Every party is a process of its own on loopback, and every client's training is a constant. Ours is
the whole product: mutual TLS, consents and budgets, noise, masks over all pairs, signatures,
ledgers of all parties and their countersignatures, durable states, Adam. The peers average plain
updates, without TLS, noise or secure aggregation. Timed is the wall clock from the end of one round
to that of the next, medians; the first round is left out everywhere.

FLARE's rows want NVFLARE_PYTHON, the Python of an environment that has `nvflare` (2.9 was tried).

Memory: the largest resident size of the server's processes (ours: service and driver together),
with four clients and with eight.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import Row, context, main
from benchmarks.round_ours import OurFederation, parameters_of
from benchmarks.round_peers import flare_rounds, flower_rounds

NODES = 4
ROUNDS = {4: 12, 100: 9}
QUICK = {4: 4}
PEER_ROUNDS = {4: 6, 100: 6}
Timed = Callable[[Path, int, int, int], tuple[list[float], dict[str, float]]]
PEERS: dict[str, Timed] = {"Flower": flower_rounds, "NVIDIA FLARE": flare_rounds}


def run(quick: bool) -> Iterator[Row]:
    """Yield a row for each size and peer, then those of memory."""
    for megabytes, rounds in (QUICK if quick else ROUNDS).items():
        ours, memory = _ours(megabytes, NODES, rounds)
        found = {} if quick else {name: _peer(name, megabytes, NODES) for name in _installed()}
        for name, (seconds, _) in found.items() or {None: ([], {})}.items():
            yield _row(megabytes, ours, name, seconds)
        if megabytes == max(ROUNDS):
            yield from _memory(megabytes, memory, found)


def _row(megabytes: int, ours: list[float], peer: str | None, seconds: list[float]) -> Row:
    value = statistics.median(ours)
    other = statistics.median(seconds) if seconds else None
    return Row(
        f"round of {megabytes} MB, {NODES} nodes", value, "s", peer=peer, peer_value=other,
        ratio_to_peer=other / value if other else None,
        context=_context(megabytes, rounds_s=_listed(ours), peer_rounds_s=_listed(seconds)),
    )  # fmt: skip


def _memory(
    megabytes: int, ours: float, found: dict[str, tuple[list[float], float]]
) -> Iterator[Row]:
    """With four clients, measured already, and with eight."""
    _, more = _ours(megabytes, 2 * NODES, 2)
    flare = "NVIDIA FLARE"
    peers = {NODES: found[flare][1]} if flare in found else {}
    if peers:
        peers[2 * NODES] = _peer(flare, megabytes, 2 * NODES, rounds=2)[1]
    for nodes, value in ((NODES, ours), (2 * NODES, more)):
        peer = peers.get(nodes)
        yield Row(
            f"memory of the server, {megabytes} MB, {nodes} nodes", value, "MB",
            peer=flare if peer else None, peer_value=peer,
            ratio_to_peer=peer / value if peer else None, context=_context(megabytes, nodes=nodes),
        )  # fmt: skip


def _ours(megabytes: int, nodes: int, rounds: int) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        ends, memory = OurFederation(Path(folder), megabytes, nodes, rounds).rounds()
    return _seconds(ends), sum(memory.values())


def _peer(
    name: str, megabytes: int, nodes: int, rounds: int | None = None
) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        ends, memory = PEERS[name](
            Path(folder), parameters_of(megabytes), nodes, rounds or PEER_ROUNDS[megabytes]
        )
    # Flower tells when it began as well, which says nothing of the first round's end.
    return _seconds(ends[1:] if name == "Flower" else ends), sum(memory.values())


def _seconds(ends: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(ends)]


def _listed(seconds: list[float]) -> list[float]:
    return [round(each, 3) for each in seconds]


def _installed() -> list[str]:
    if "NVFLARE_PYTHON" in os.environ:
        return list(PEERS)
    print("no rows of NVIDIA FLARE: NVFLARE_PYTHON names no Python that has it", file=sys.stderr)
    return ["Flower"]


def _context(megabytes: int, **details: object) -> dict[str, object]:
    return context(["grpcio", "flwr", "torch"], parameters=parameters_of(megabytes), **details)


if __name__ == "__main__":
    main(run)
