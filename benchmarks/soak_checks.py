"""What must hold of a federation's files, whatever was killed: each rule yields what breaks it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from benchmarks.soak_state import RunState, State
from coordinator.attempts import Attempt, Phase
from privacy.consent_pins import COORDINATOR
from privacy.ledger.entries import Release, RoundAborted, RoundRecorded, RunOpened
from privacy.rounds import RoundPlan

_ENDED = (Phase.RECORDED, Phase.ABORTED)
_OVER = ("finished", "cancelled")


def violations(state: State) -> list[str]:
    """Hold the state against every rule; empty where all hold."""
    rules = (_ledgers, _rounds, _history, _models, _releases, _spends, _survivor_sets)
    return [fault for rule in rules for fault in rule(state)]


def _ledgers(state: State) -> Iterator[str]:
    """Every party's ledger is there and verifies, alone and beside the others; nobody doubts it."""
    for name in (COORDINATOR, *state.nodes):
        if name not in state.reports:
            yield f"the ledger of {name} is not there"
            continue
        for failure in state.reports[name].failures:
            yield f"ledger of {name}: {failure}"
    for name, node in state.nodes.items():
        for stop in node.stops:
            yield f"{name} was stopped by a file {stop}, though nobody forked or restored anything"


def _rounds(state: State) -> Iterator[str]:
    """Every run is over, every attempt ended, and rounds and attempts follow one another."""
    for run in state.runs.values():
        if run.state not in _OVER:
            yield f"{run.name} is {run.state}: expected one that is over"
        if (run.state == "finished") != (_recorded(run) == run.rounds):
            yield f"{run.name} is {run.state} with {_recorded(run)} of {run.rounds} rounds"
        expected = (1, 1)
        for attempt in run.attempts:
            place, is_recorded = (attempt.round, attempt.attempt), attempt.phase == Phase.RECORDED
            if attempt.phase not in _ENDED:
                yield f"{run.name} round {place[0]} attempt {place[1]} was left {attempt.phase}"
            if place != expected:
                yield f"{run.name} goes on with {place}: expected {expected}"
            expected = (place[0] + 1, 1) if is_recorded else (place[0], place[1] + 1)


def _history(state: State) -> Iterator[str]:
    """What the coordinator kept of an attempt is in its ledger once, and nothing else is."""
    kept = Counter(
        (run.name, attempt.round, attempt.attempt, digest_of(attempt), attempt.survivors)
        for run in state.runs.values()
        for attempt in run.attempts
    )
    written = Counter(
        (body.run, body.round, body.attempt, body.plan_digest, _survivors(body))
        for body in state.history
        if isinstance(body, RoundRecorded | RoundAborted)
    )
    for run, number, attempt, *_ in kept - written:
        yield f"{run} round {number} attempt {attempt} is not in the coordinator's ledger"
    for run, number, attempt, *_ in written - kept:
        yield f"{run} round {number} attempt {attempt} is in the coordinator's ledger too often"


def _models(state: State) -> Iterator[str]:
    """Each run was opened once; its parameters are those of its last record; it is handed out."""
    for run in state.runs.values():
        own = [body for body in state.history if getattr(body, "run", "") == run.name]
        opened = [body for body in own if isinstance(body, RunOpened)]
        if len(opened) != bool(run.attempts or opened):
            yield f"{run.name} was opened {len(opened)} times"
        made = any(isinstance(body, RoundRecorded) for body in own)
        is_over = run.state == "finished" or (run.state == "cancelled" and made)
        if sum(isinstance(body, Release) for body in own) != is_over:
            yield f"the model of {run.name} was not handed out once, at its end"
        after = [body.model_digest_after for body in own if isinstance(body, RoundRecorded)]
        expected = after or [body.model_digest for body in opened]
        if expected and run.digest != expected[-1]:
            yield f"{run.name} holds model {run.digest[:12]}: expected {expected[-1][:12]}"


def _releases(state: State) -> Iterator[str]:
    """A node charged whatever it took part in, once, and the coordinator knows of each charge."""
    known = {digest_of(attempt): attempt for run in state.runs.values() for attempt in run.attempts}
    for name, node in state.nodes.items():
        debited = Counter(debit.plan_digest for debit in node.debits)
        for plan in (plan for plan, count in debited.items() if count > 1):
            yield f"{name} charged plan {plan[:12]} more than once"
        counted = {plan for plan, attempt in known.items() if name in attempt.survivors}
        for plan in (counted | node.signed.keys() | node.unmasked) - debited.keys():
            yield f"{name} took part under plan {plan[:12]} and did not charge it"
        for plan in debited.keys() - known.keys():
            yield f"{name} charged plan {plan[:12]}, of which the coordinator knows nothing"


def _spends(state: State) -> Iterator[str]:
    """A node is within its consent, and the coordinator counts no less than the node does."""
    for name, node in state.nodes.items():
        if name not in state.reports:
            continue
        report = state.reports[name]
        spent = report.epsilon_micro
        counted = sum(run.charged.get(name, 0) for run in state.runs.values())
        if spent is None or spent > node.epsilon_micro or report.delta_1e15 > node.delta_1e15:
            yield f"{name} spent epsilon {spent} and delta {report.delta_1e15}: over its consent"
        if spent is not None and counted < spent:
            yield f"the coordinator counts epsilon {counted} for {name}, whose ledger says {spent}"
        reserved = {run.run for run in report.runs}
        for run in sorted({debit.run for debit in node.debits} - reserved):
            yield f"{name} released in {run} without a reservation"


def _survivor_sets(state: State) -> Iterator[str]:
    """Under one plan one set was signed, by whomever; by a quorum where the sum was used."""
    sets: dict[str, dict[str, str]] = defaultdict(dict)
    for name, node in state.nodes.items():
        for plan, digest in node.signed.items():
            sets[plan][name] = digest
    for plan, signed in sets.items():
        if len(set(signed.values())) > 1:
            yield f"{len(set(signed.values()))} survivor sets were signed under plan {plan[:12]}"
    for run in state.runs.values():
        for attempt in (each for each in run.attempts if each.phase == Phase.RECORDED):
            quorum = RoundPlan.from_payload(attempt.plan.payload).quorum
            if len(sets[digest_of(attempt)]) < quorum:
                yield f"{run.name} round {attempt.round} was opened without a quorum of {quorum}"


def digest_of(attempt: Attempt) -> str:
    """The attempt's plan, as ledgers name it."""
    return hashlib.sha256(attempt.plan.payload).hexdigest()


def _recorded(run: RunState) -> int:
    return sum(attempt.phase == Phase.RECORDED for attempt in run.attempts)


def _survivors(body: RoundRecorded | RoundAborted) -> Sequence[str]:
    return body.survivors if isinstance(body, RoundRecorded) else ()
