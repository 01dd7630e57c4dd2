"""What a masked sum costs as a federation grows: a round at 10 to 1,000 nodes in one process.

10% of the nodes leave before they upload, 10% may conspire with the coordinator; graph and
committee are those that `choose_parameters` allows for that (complete up to 50 nodes). Every node
has keys of its own, masks, seals and, on the committee, signs and unmasks; every message is written
and read; the sum is checked. There is no peer that survives a malicious coordinator; the limit of a
node's growth is n log n.

Counted in CPU seconds of one process, one thread: for a node encoding with noise, masks, shares,
sealing, its store, and on the committee the survivor set and the packets; for the coordinator all
it checks and sums. The graph is drawn once in the process; its time is added to the committee and
the coordinator, who need all of it, and that of a member's own neighbours to the others. Bytes are
those of control messages, sent and received; the masked words (2 a parameter) come on top. Entering
the epoch (n bundles and n nonces to verify) is counted for one node. Not counted: training, the
plan's verification, transport.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Row, context, main
from benchmarks.secagg_members import join
from benchmarks.secagg_round import Cost, OurRound
from privacy.dp.noise import SecureGaussian
from privacy.rounds import RoundPlan
from privacy.secagg.graph import draw_groups
from privacy.secagg.roster import Roster
from protos.epoch_messages import KeyBundleMessage, RevealMessage, RevealsMessage, RosterMessage

LENGTH = 500_000
LIMIT = "n log n"
SHARE = 10  # one in ten leaves, one in ten may conspire

Figures = dict[tuple[str, str], float]


def run(quick: bool) -> Iterator[Row]:
    """Yield every party's costs by size, then their growth."""
    torch.set_num_threads(1)
    sizes = (10, 60, 120) if quick else (10, 30, 100, 200, 300, 500, 1000)
    length = LENGTH // 10 if quick else LENGTH
    found: dict[int, Figures] = {}
    for nodes in sizes:
        found[nodes], details = measure(nodes, length)
        fields = context(["numpy", "cryptography"], threads=1, ring_bits=16, length=length,
                         machine="shared", **details)  # fmt: skip
        for (what, unit), value in found[nodes].items():
            yield Row(f"{what}, {nodes} nodes", value, unit, context=fields)
    yield from growth_rows(found)


def measure(nodes: int, length: int) -> tuple[Figures, Mapping[str, Any]]:
    """Run one round; return what it cost, and its parameters."""
    missing = nodes // SHARE
    update = np.random.default_rng(0).normal(0, 0.01, length).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        members = join([f"node-{place:04}" for place in range(nodes)], Path(folder))
        plan = members.plan(1, length, nodes - missing, colluders=nodes // SHARE)
        own_s, graph_s = time_graph(members.roster, plan)
        done = OurRound(members, plan, [update] * nodes, missing, SecureGaussian())
        done.run()
    committee = set(members.roster.groups(plan)[0].committee)
    groups = {
        "node on the committee": [cost for name, cost in done.nodes.items() if name in committee],
        "node": [cost for name, cost in done.nodes.items() if name not in committee],
        "coordinator": [done.server],
    }
    figures: Figures = {}
    for who, costs in groups.items():
        if costs:
            figures |= mean_figures(who, costs, own_s if who == "node" else graph_s)
    entry_bytes = sum(
        len(message.to_bytes())
        for message in (
            KeyBundleMessage(members.bundles[0]),
            RosterMessage(members.bundles),
            RevealMessage(members.reveals[0]),
            RevealsMessage(members.reveals),
        )
    )
    figures["node, entering an epoch", "CPU s"] = members.entry_s
    figures["node, entering an epoch", "control bytes"] = entry_bytes
    figures["all of the graph, if it is drawn", "CPU s"] = graph_s
    parameters = {
        name: getattr(plan, name) for name in ("degree", "least_neighbours", "committee", "quorum")
    }
    return figures, {"nodes": nodes, "dropped": missing, **parameters}


def time_graph(roster: Roster, plan: RoundPlan) -> tuple[float, float]:
    """CPU seconds of drawing one member's neighbours, and all; the process then keeps them."""
    draw_groups.cache_clear()
    begin = time.process_time()
    neighbours = roster.groups(plan)[0].neighbours
    neighbours[roster.names[0]]
    own_s = time.process_time() - begin
    list(neighbours.values())
    return own_s, time.process_time() - begin


def mean_figures(who: str, costs: Sequence[Cost], drawing_s: float) -> Figures:
    """Means over the parties of a kind, in a round."""
    return {
        (who, "CPU s"): statistics.fmean(cost.seconds for cost in costs) + drawing_s,
        (who, "control messages"): statistics.fmean(cost.messages for cost in costs),
        (who, "control bytes"): statistics.fmean(
            cost.sent_bytes + cost.received_bytes for cost in costs
        ),
    }


@dataclass(frozen=True)
class Growth:
    """A least-squares line through logarithms: cost ~ n^power."""

    power: float
    power_of_limit: float

    @classmethod
    def of(cls, by_size: Mapping[int, float]) -> "Growth":
        """Fit the sizes given, and n log n at the same sizes."""
        logs = np.log(list(by_size))
        power = np.polyfit(logs, np.log(list(by_size.values())), 1)[0]
        limit = np.polyfit(logs, np.log([n * math.log(n) for n in by_size]), 1)[0]
        return cls(float(power), float(limit))


def growth_rows(found: Mapping[int, Figures]) -> Iterator[Row]:
    """Yield the power of n with which each figure grows, over all sizes that have it."""
    for what, unit in found[max(found)]:
        by_size = {
            n: figures[what, unit] for n, figures in found.items() if (what, unit) in figures
        }
        if len(by_size) < 2 or min(by_size.values()) <= 0:
            continue
        growth = Growth.of(by_size)
        yield Row(
            f"growth of {unit}, {what}", growth.power, "power of n", limit=LIMIT,
            limit_value=growth.power_of_limit, ratio_to_limit=growth.power / growth.power_of_limit,
            context={"sizes": list(by_size)},
        )  # fmt: skip


if __name__ == "__main__":
    main(run)
