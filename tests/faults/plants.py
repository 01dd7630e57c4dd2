"""Faults that would break the privacy claim, as functions that put one into the product.

A plant changes the product as a careless change would: one function does the wrong thing. Where the
fault is one of data (an altered ledger, a restored disk), the test itself makes the data wrong, and
the plant is a check that no longer looks.
"""

import math
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting.dp_event import ComposedDpEvent, DpEvent, SelfComposedDpEvent
from torch.nn import functional as F

import client.budget
import client.gate
import client.release
import coordinator.driver
from client.budget import NodeBooks
from client.data import Record
from client.training import LocalTrainer
from client.unit_keys import UnitKeys
from privacy import figures
from privacy.dp import accountant, clipping, lattice, sampling
from privacy.dp.events import event_from_json
from privacy.dp.grouped_records import GroupedRecord
from privacy.dp.noise import SecureGaussian
from privacy.dp.records import UnitLayout
from privacy.ledger import verify, verify_one
from privacy.ledger.entries import DELTA_UNITS, EPSILON_UNITS, ReleaseDebited
from privacy.ledger.filter import Cost, FilterState
from privacy.ledger.log import LedgerLog

PACKAGES = ("arion", "client", "coordinator", "models", "privacy", "protos", "tests")


def replace_everywhere(patch: pytest.MonkeyPatch, original: Any, faulty: Any) -> None:
    """Replace a function or class under every name by which a module of ours imported it."""
    found = False
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType) or module.__name__.split(".")[0] not in PACKAGES:
            continue
        for name, value in list(vars(module).items()):
            if value is original and module.__name__ != __name__:
                patch.setattr(module, name, faulty)
                found = True
    assert found, f"{original} is imported nowhere"


class Weak:
    """A source of a tenth of the noise."""

    def __init__(self, source: Any) -> None:
        self.seeded, self._source = source.seeded, source

    def normal(self, count: int) -> np.ndarray:
        return self._source.normal(count) / 10


class Shuffler:
    """Batches of a fixed size in place of Poisson draws."""

    def __init__(self, probability: float, source: Any) -> None:
        self._probability = probability
        self._generator = np.random.default_rng(int(source.words(1)[0]))

    def draw(self, units: int) -> np.ndarray:
        size = round(units * self._probability)
        return np.sort(self._generator.permutation(units)[:size])


def weak_source(patch: pytest.MonkeyPatch) -> None:
    right = SecureGaussian.normal
    patch.setattr(SecureGaussian, "normal", lambda self, count: right(self, count) / 10)


def weak_share(patch: pytest.MonkeyPatch) -> None:
    right = lattice.encode
    replace_everywhere(patch, right, lambda x, step, source: right(x, step, Weak(source)))


def skip_experts(patch: pytest.MonkeyPatch) -> None:
    right = GroupedRecord.squared_norms
    patch.setattr(GroupedRecord, "squared_norms", lambda self: 0 * right(self))


def couple_the_batch(patch: pytest.MonkeyPatch) -> None:
    def coupled(model: Any, chunk: Any) -> Any:
        nats_BT = F.cross_entropy(
            model(chunk.token_BT).transpose(1, 2), chunk.target_BT, reduction="none"
        )
        return (nats_BT * nats_BT.detach().mean(0)).mean(1)

    patch.setattr(clipping, "unit_losses", coupled)


def shuffle(patch: pytest.MonkeyPatch) -> None:
    replace_everywhere(patch, sampling.PoissonSampler, Shuffler)


def shuffle_at_the_node(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client.release, "PoissonSampler", Shuffler)


def divide_by_the_draw(patch: pytest.MonkeyPatch) -> None:
    right = LocalTrainer.clipped_sum

    def averaged(self: LocalTrainer, drawn: np.ndarray, step: Any) -> np.ndarray:
        return right(self, drawn, step) / np.float32(max(1, len(drawn)))

    patch.setattr(LocalTrainer, "clipped_sum", averaged)


def divide_by_the_survivors(patch: pytest.MonkeyPatch) -> None:
    right = coordinator.driver.adam_step

    def averaged(state: Any, sum_D: Any, batch: float, *rest: Any, **options: Any) -> Any:
        return right(state, sum_D, batch * 3 / 4, *rest, **options)

    patch.setattr(coordinator.driver, "adam_step", averaged)


def noise_only_what_moved(patch: pytest.MonkeyPatch) -> None:
    right = lattice.encode

    class Sparse:
        def __init__(self, source: Any, used: np.ndarray) -> None:
            self.seeded, self._source, self._used, self._at = source.seeded, source, used, 0

        def normal(self, count: int) -> np.ndarray:
            part = self._used[self._at : self._at + count]
            self._at += count
            return np.where(part, self._source.normal(count), 0.0)

    def encode(x: np.ndarray, step: Any, source: Any) -> np.ndarray:
        return right(x, step, Sparse(source, x != 0) if step.is_private else source)

    replace_everywhere(patch, right, encode)


def debit_late(patch: pytest.MonkeyPatch) -> None:
    """The debit is written when the next plan comes, after the upload has left."""
    right, read = NodeBooks.debit, NodeBooks.debit_of
    late: list[tuple[Any, ...]] = []

    def debit_of(self: NodeBooks, digest: bytes) -> Any:
        while late:
            right(*late.pop())
        return read(self, digest)

    patch.setattr(NodeBooks, "debit", lambda *arguments: late.append(arguments))
    patch.setattr(NodeBooks, "debit_of", debit_of)


def debit_experts_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NodeBooks, "debit_experts", lambda *_: None)


def write_the_count_down(patch: pytest.MonkeyPatch) -> None:
    """The reservation's data set says how many units there are."""
    right, count = client.budget.round_reservation, LocalTrainer.__init__
    seen: list[int] = []

    def opened(self: LocalTrainer, model: Any, units: Any, *rest: Any, **options: Any) -> None:
        count(self, model, units, *rest, **options)
        seen.append(len(units))

    def reservation(*told: Any, **options: Any) -> Any:
        body = right(*told, **options)
        return body.model_copy(update={"data_set": f"{body.data_set}-{seen[-1]}"})

    patch.setattr(LocalTrainer, "__init__", opened)
    patch.setattr(client.budget, "round_reservation", reservation)


def clip_sequences_apart(patch: pytest.MonkeyPatch) -> None:
    right = LocalTrainer._chunk

    def chunk(self: LocalTrainer, *arguments: Any) -> Any:
        whole = right(self, *arguments)
        rows = len(whole.token_BT)
        layout = UnitLayout(torch.arange(rows), rows)
        return replace(whole, layout=layout, present_U=whole.present_U[whole.layout.unit_B])

    patch.setattr(LocalTrainer, "_chunk", chunk)


def trim_the_draw(patch: pytest.MonkeyPatch) -> None:
    right = sampling.physical_chunks

    def trimmed(indices: np.ndarray, chunk_units: int, chunks: int) -> Any:
        return right(indices[: chunk_units * chunks], chunk_units, chunks)

    replace_everywhere(patch, right, trimmed)


def trim_at_the_node(patch: pytest.MonkeyPatch) -> None:
    right = LocalTrainer._chunks

    def trimmed(self: LocalTrainer, drawn: np.ndarray, step: Any, *rest: Any) -> Any:
        rate, room = step.sampling_probability, self._chunk_units
        room *= sampling.chunks_for(len(self.units), rate, room)
        return right(self, drawn[:room], step, *rest)

    patch.setattr(LocalTrainer, "_chunks", trimmed)


def compose_later_runs_by_pld(patch: pytest.MonkeyPatch) -> None:
    """All runs so far and one more like the last are charged as one schedule, fixed in advance."""

    def spent_elsewhere(self: NodeBooks, run: str, **_: bool) -> tuple[float, float]:
        others = [known.reserved for name, known in self._runs.items() if name != run]
        events = [SelfComposedDpEvent(event_from_json(o.event), o.releases) for o in others]
        if not events:
            return 0.0, 0.0
        whole = accountant.epsilon(ComposedDpEvent([*events, events[-1]]), self._consent.delta)
        return whole - (others[-1].epsilon_micro or 0) / EPSILON_UNITS, 0.0

    patch.setattr(NodeBooks, "spent_elsewhere", spent_elsewhere)


def compose_filtered_runs_by_pld(patch: pytest.MonkeyPatch) -> None:
    """Under a filter, everything so far and the next release are charged as one PLD."""
    events: dict[int, list[DpEvent]] = {}
    charge = FilterState.add

    def add(self: FilterState, body: ReleaseDebited) -> Cost:
        events.setdefault(id(self), []).append(event_from_json(body.event))
        return charge(self, body)

    def clause_against(self: FilterState, run: str, cost: Cost) -> str | None:
        so_far = events.get(id(self), [])
        delta = self.opened.delta_1e15 / DELTA_UNITS
        spent = accountant.epsilon(ComposedDpEvent([*so_far, *so_far[-1:]]), delta)
        return "epsilon" if so_far and spent * EPSILON_UNITS > self.opened.epsilon_micro else None

    patch.setattr(FilterState, "add", add)
    patch.setattr(FilterState, "clause_against", clause_against)


def believe_any_ledger(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LedgerLog, "verify_not_restored", lambda *_: None)


def any_root_will_do(patch: pytest.MonkeyPatch) -> None:
    """Heads are believed whatever entries lie beside them."""
    right = verify_one._faults
    patch.setattr(
        verify_one,
        "_faults",
        lambda *arguments: (why for why in right(*arguments) if "its root" not in why),
    )


def any_index_will_do(patch: pytest.MonkeyPatch) -> None:
    """Entries are taken in the order in which they lie, whatever their index says."""
    right = verify_one.parse_entry
    count = iter(range(10**6))
    patch.setattr(
        verify_one,
        "parse_entry",
        lambda line: right(line).model_copy(update={"index": next(count)}),
    )


def compare_no_copies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "_forks", lambda *_: ())


def round_down(patch: pytest.MonkeyPatch) -> None:
    right = accountant.epsilon_microunits
    replace_everywhere(patch, right, lambda value: min(right(value), math.floor(value * 1e6)))


def round_to_the_nearest(patch: pytest.MonkeyPatch) -> None:
    replace_everywhere(patch, figures.at_most, lambda value, places=4: f"{value:.{places}f}")


def take_any_units(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client.gate, "_check_whole", lambda plan, trainer: None)


def add_up_what_does_not(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NodeBooks, "_check_one_kind", lambda self: None)


def leave_nobody_out(patch: pytest.MonkeyPatch) -> None:
    right = UnitKeys.own

    def own(self: UnitKeys, data_set: str, records: list[Record]) -> list[Record]:
        right(self, data_set, records)
        return records

    patch.setattr(UnitKeys, "own", own)
