"""What came of a soak, counted from its files."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from benchmarks.harness import Row, context
from benchmarks.soak_memory import judge
from benchmarks.soak_run import Soak
from benchmarks.soak_state import State
from coordinator.attempts import Phase

PACKAGES = ["torch", "grpcio", "flwr", "sqlalchemy"]
KINDS = ("coordinator", "driver", "node")
_UNDER_WAY = (Phase.UPLOADING, Phase.SURVIVORS, Phase.APPLIED)
_LONGEST_GAP_S = 60.0


def report(soak: Soak, settings: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows; what they show to be wrong is added to the soak's violations."""
    state, events, samples = soak.state(), soak.events.read(), soak.samples.read()
    memory = {kind: judge(samples, kind) for kind in KINDS}
    soak.violations += [fault for kind in KINDS for fault in memory[kind].faults(kind)]
    soak.violations += [
        f"{event['name']} ended by itself with code {event['code']}: {event['said']}"
        for event in events
        if event["event"] == "exit" and event["kind"] != "driver"
    ]
    details = context(PACKAGES, settings=dict(settings), minutes=round(_minutes(events), 1))
    recorded, given_up = soak.rounds()
    yield Row("rounds recorded", recorded, "rounds", context=details)
    yield Row("rounds given up after three attempts, or at the end", given_up, "rounds")
    yield from _attempts(state)
    yield from _befell(events, f"{soak.federation.folder}/")
    yield from _went_on(state, events)
    for kind in KINDS:
        found = memory[kind]
        for name, value in (("first quarter", found.first), ("last quarter", found.last)):
            if value is not None:
                yield Row(f"memory of a {kind}, {name}", value, "MB")
        if found.per_round is not None:
            yield Row(f"memory of a {kind}, growth when undisturbed", found.per_round, "MB/round")
    yield Row("violations", len(soak.violations), "", context={"found": list(soak.violations)})


def _attempts(state: State) -> Iterator[Row]:
    attempts = [attempt for run in state.runs.values() for attempt in run.attempts]
    codes = Counter(attempt.code for attempt in attempts if attempt.code)
    states = Counter(run.state for run in state.runs.values())
    yield Row("runs", len(state.runs), "", context=dict(states))
    yield Row("attempts", len(attempts), "")
    yield Row("attempts aborted", sum(codes.values()), "", context=dict(codes))
    releases = sum(len(node.debits) for node in state.nodes.values())
    yield Row("releases charged at nodes", releases, "")


def _befell(events: list[dict[str, Any]], place: str) -> Iterator[Row]:
    for kind in KINDS:
        own = [event for event in events if event["kind"] == kind]
        counts = Counter(event["event"] for event in own)
        names = {event["name"] for event in own}
        yield Row(f"kills of a {kind}", counts["kill"], "")
        yield Row(f"restarts of a {kind}", counts["start"] - len(names), "")
    said = Counter(
        event["said"].replace(place, "")[:160]
        for event in events
        if event["event"] == "exit" and event["code"]
    )
    yield Row("stops of a driver that said why", sum(said.values()), "", context=dict(said))


def _went_on(state: State, events: list[dict[str, Any]]) -> Iterator[Row]:
    """What became of the attempts in which driver or service were killed."""
    ends = {
        (run.name, attempt.round, attempt.attempt): attempt.code or str(attempt.phase)
        for run in state.runs.values()
        for attempt in run.attempts
    }
    for kind in ("coordinator", "driver"):
        places = [
            event["place"] for event in events if event["event"] == "kill" and event["kind"] == kind
        ]
        under_way = {tuple(place[:3]) for place in places if place and place[3] in _UNDER_WAY}
        found = Counter(ends[place] for place in under_way)
        yield Row(
            f"attempts under way when a {kind} was killed, recorded", found["recorded"], "",
            context=dict(found),
        )  # fmt: skip


def _minutes(events: list[dict[str, Any]]) -> float:
    """Time that was soaked; a pause until it was resumed does not count."""
    times = [event["time"] for event in events]
    gaps = (after - before for before, after in pairwise(times))
    return sum(gap for gap in gaps if gap < _LONGEST_GAP_S) / 60
