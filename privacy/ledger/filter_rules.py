"""The rules of a node's ledger under a Rényi filter: every charge computed anew, and admitted."""

from collections.abc import Iterator
from dataclasses import dataclass

from privacy.ledger.entries import FilterOpened, ReleaseDebited
from privacy.ledger.filter import FilterState, charge_entry, cost_of
from privacy.ledger.spends import RunSpend
from privacy.ledger.unit_rules import is_sampled
from privacy.units import INSTITUTION


@dataclass
class _Run:
    debits: int = 0
    last: tuple[int, int] = (0, 0)
    closed: bool = False


class FilterRules:
    """Reads a ledger's charged debits in their order; failures in words.

    Args:
        opened: the filter's budget.

    Raises:
        AccountantError: a budget that no filter can keep.

    """

    def __init__(self, opened: FilterOpened) -> None:
        self.state = FilterState(opened)
        self._runs: dict[str, _Run] = {}

    def debit(self, body: ReleaseDebited) -> Iterator[str]:
        """Charge a debit, and say what is wrong with it."""
        run = self._runs.setdefault(body.run, _Run())
        run.debits += 1
        if run.closed:
            yield f"run {body.run!r} is debited after it was closed"
        if (place := (body.round, body.attempt)) <= run.last:
            yield f"run {body.run!r} goes from (round, attempt) {run.last} to {place}"
        run.last = (body.round, body.attempt)
        yield from self._charge(body)

    def close(self, run: str) -> bool:
        """Note that a run makes no more releases; False where it made none."""
        if run in self._runs:
            self._runs[run].closed = True
        return run in self._runs

    def runs(self) -> list[RunSpend]:
        """Return every run with the budget that its own filter keeps it within."""
        opened = self.state.opened
        return [
            RunSpend(
                run=name,
                epsilon_micro=opened.epsilon_per_run_micro,
                delta_1e15=opened.run_delta_1e15,
                releases=run.debits,
                debits=run.debits,
                unit=opened.unit,
                data_set=opened.data_set,
            )
            for name, run in self._runs.items()
        ]

    def _charge(self, body: ReleaseDebited) -> Iterator[str]:
        if body.unit_keys is not None:
            yield f"run {body.run!r} names a register of unit keys in a ledger that a filter keeps"
        if body.charge is None:
            yield f"run {body.run!r} is debited without its charge in a ledger that a filter keeps"
            return
        if self.state.opened.unit == INSTITUTION and is_sampled(body.event):
            yield f"run {body.run!r} is charged as if the institution were sampled"
        try:
            cost = cost_of(body.event, body.charge.basis)
            expected = charge_entry(body.event, body.charge.basis)
        except (ValueError, ArithmeticError) as error:
            yield f"run {body.run!r} has an event that a filter cannot charge: {error}"
            return
        if body.charge != expected:
            yield f"run {body.run!r} is debited with another charge than its event costs"
        if (clause := self.state.clause_against(body.run, cost)) is not None:
            yield f"run {body.run!r} is debited beyond what the filter on {clause} admits"
        self.state.add(body)
