"""What a release must be whatever the data: noised everywhere, undivided, and silent on N."""

import json
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.dp_event import ComposedDpEvent

from arion.toml_file import write_toml
from client.config import CONSENT_FILE
from client.training import LocalTrainer, UnitRows
from privacy.dp.accountant import epsilon
from privacy.dp.lattice import decode, encode, release_variance
from privacy.dp.noise import SeededGaussian, derive_seeded_key
from privacy.dp.sampling import chunks_for
from privacy.rounds import PlanCode, PlanRefused, run_cost
from protos.messages import SurvivorsRequest
from tests import small_federation
from tests.small_federation import (
    FEDERATION,
    NAMES,
    RECIPE,
    RUN,
    STEP,
    Ground,
    SmallFederation,
    build,
    lay_ground,
)
from tests.small_hands import Hands

HEX = re.compile(r"^(?:[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{128})$")


def test_what_no_unit_moved_is_noised() -> None:
    """Experts that no token reached have a sum of zero: every coordinate is noised all the same."""
    used, length = np.zeros(60_000, np.float32), 20_000
    used[:length] = 0.25
    source = SeededGaussian(derive_seeded_key(11, "unused"))
    noise = decode(encode(used, STEP, source), STEP) - used
    for part in np.split(noise, 3):
        ratio = (part**2).mean() / release_variance(STEP, 1)
        assert abs(ratio - 1) < 5 * math.sqrt(2 / length)
        assert np.count_nonzero(part) > 0.85 * length  # the lattice's own zeros are a tenth


def test_a_draws_sum_is_not_divided_by_its_size(federation: SmallFederation) -> None:
    """Two draws without a common unit: the sum over both is the sum of their sums."""
    trainer = federation.trainer("north")
    parts = [np.arange(3), np.arange(3, 9)]
    first, second = (trainer.clipped_sum(part, STEP) for part in parts)
    both = trainer.clipped_sum(np.arange(9), STEP)
    assert np.linalg.norm(both - first - second) < 1e-5 * np.linalg.norm(both)


def test_a_large_draw_is_summed_whole(federation: SmallFederation) -> None:
    """A draw far above what is expected: no unit is left out for lack of room."""
    once = federation.trainer("north")
    rare = STEP.model_copy(update={"sampling_probability": 1e-6})
    thrice = UnitRows(once.units.rows * 3)
    trainer = LocalTrainer(once.model, thrice, RECIPE, chunk_sequences=2, pad_draws=False)
    assert chunks_for(trainer.unit_count, rare.sampling_probability, 1) < trainer.unit_count
    expected = 3 * once.clipped_sum(np.arange(once.unit_count), rare)
    whole = trainer.clipped_sum(np.arange(trainer.unit_count), rare)
    assert np.linalg.norm(whole - expected) < 1e-5 * np.linalg.norm(expected)


def shape(value: Any) -> Any:
    """A message or entry with its digests, keys, signatures and masked bytes taken out."""
    if isinstance(value, bytes | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, str) and HEX.match(value):
        return "digest"
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shape(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return shape({name: getattr(value, name) for name in value.__dataclass_fields__})
    return value


def what_leaves(hands: Hands) -> list[Any]:
    """All that north sends in a round, and all that an auditor is given of it."""
    plan, node = hands.plan(), hands.nodes["north"]
    total = hands.collect(plan)
    sealed = hands.release("north", plan)
    request = total.close()
    total.certify([hands.nodes[name].sign_survivors(request) for name in NAMES])
    sent = [sealed.upload, sealed.words, json.loads(sealed.upload.header.payload)]
    sent.append(node.sign_survivors(SurvivorsRequest(plan.digest(), request.headers)))
    sent.append(node.unmask(total.unmask_request("north")))
    node.close_run(FEDERATION, RUN)
    ledger = hands.federation.homes.nodes["north"] / "ledger"
    entries = [json.loads(line) for line in (ledger / "entries.jsonl").read_text().splitlines()]
    return [shape(item) for item in (*sent, *entries)]


def test_the_number_of_units_stays_at_home(
    ground: Ground,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    take: Callable[..., Hands],
) -> None:
    """Add or remove one hides N only while nothing that leaves is computed from it."""
    seen = []
    for persons in (20, 21):
        monkeypatch.setattr(small_federation, "PERSONS", persons)
        folder = tmp_path / str(persons)
        folder.mkdir()
        other = Ground(ground.base_model, lay_ground(folder).data)
        hands = take(build(other, tmp_path / f"run-{persons}"))
        seen.append(what_leaves(hands))
        opened = hands.nodes["north"]._seats._newest
        assert opened is not None
        assert opened[1].trainer.unit_count == persons
    assert seen[0] == seen[1]


def test_runs_chosen_after_seeing_results_add_up(take: Callable[..., Hands]) -> None:
    """PLD would let two equal runs share a budget that their sum exceeds; the second is refused.

    Composition by PLD needs both to be fixed before the first release. Nobody fixed the second.
    """
    hands = take()
    plan, node = hands.plan(), hands.nodes["north"]
    once = run_cost(plan, node.consent).epsilon
    path = hands.federation.homes.nodes["north"] / CONSENT_FILE
    clauses = {"epsilon": 1.9 * once, "epsilon_per_run": 1.1 * once}
    write_toml(path, tomllib.loads(path.read_text()) | clauses)
    consent = hands.reopen("north").consent
    both = ComposedDpEvent([plan.step.schedule_event()] * 2)
    length = plan.vector_length
    jointly = epsilon(both, consent.delta, vector_length=length, contributors=len(NAMES))
    assert jointly < consent.epsilon < 2 * run_cost(plan, consent).epsilon
    hands.release("north", plan)
    with pytest.raises(PlanRefused) as caught:
        hands.release("north", hands.plan(run="chosen-later"))
    assert (caught.value.code, caught.value.clause) == (PlanCode.OVER_BUDGET, "epsilon")


def test_runs_chosen_after_seeing_results_share_a_filter(take: Callable[..., Hands]) -> None:
    """PLD would let both runs come to their ends; the filter lets the second not even begin.

    The filter's charges hold for releases chosen after results, and add up to more.
    """
    hands = take()
    plan = hands.plan(step={"releases": 2})
    consent = hands.nodes["north"].consent
    both = ComposedDpEvent([plan.step.schedule_event()] * 2)
    length = plan.vector_length
    jointly = epsilon(both, consent.delta, vector_length=length, contributors=len(NAMES))
    path = hands.federation.homes.nodes["north"] / CONSENT_FILE
    budget = {"epsilon": 1.01 * jointly, "epsilon_per_run": 1.01 * jointly}
    clauses = {"accountant": "filter", "epsilon_if_all_others_collude": 100.0, **budget}
    write_toml(path, tomllib.loads(path.read_text()) | clauses)
    hands.reopen("north")
    for number in (1, 2):
        hands.release("north", hands.plan(number, step={"releases": 2}))
    with pytest.raises(PlanRefused) as caught:
        hands.release("north", hands.plan(run="chosen-later", step={"releases": 2}))
    assert (caught.value.code, caught.value.clause) == (PlanCode.OVER_BUDGET, "epsilon")
