"""Data sets kept apart: every unit in one of them only, spending on the others not added."""

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from arion.privacy_cli import privacy_app
from arion.toml_file import write_toml
from client.config import CONSENT_FILE, NODE_FILE, NodeError
from client.data import DataConfig, Record, read_shard
from client.experts_order import ExpertsOrder, train_experts
from client.training import LocalTrainer, unit_rows
from client.unit_keys import UNIT_KEYS_FILE, UnitKeys
from models.checkpoint import load_model
from models.recipe import prepare
from privacy.ledger.entries import DELTA_UNITS, EPSILON_UNITS
from privacy.ledger.log import LedgerLog
from privacy.rounds import PlanCode, PlanRefused
from tests.dying import dying
from tests.experts_release import ORDER
from tests.small_federation import RECIPE
from tests.small_hands import Hands

Use = tuple[str, frozenset[str]]
UNITS = [f"person-{number}" for number in range(8)]
histories = st.lists(
    st.tuples(st.sampled_from("abc"), st.frozensets(st.sampled_from(UNITS))), max_size=6
)


def records(units: Sequence[str]) -> list[Record]:
    return [Record(f"text of {unit}", unit, unit, f"shard:{unit}") for unit in units]


def used(folder: Path, history: Sequence[Use], without: str = "") -> list[set[str]]:
    """What a node uses in turn, opening its register anew each time."""
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    return [
        {r.unit for r in UnitKeys(path, "person").own(name, records(sorted(units - {without})))}
        for name, units in history
    ]


@settings(max_examples=60, deadline=None)
@given(histories)
def test_a_unit_is_used_with_its_first_data_set_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, history: list[Use]
) -> None:
    """The oracle is a dictionary of who came first."""
    owner: dict[str, str] = {}
    found = used(tmp_path_factory.mktemp("keys"), history)
    for (name, units), own in zip(history, found, strict=True):
        for unit in units:
            owner.setdefault(unit, name)
        assert own == {unit for unit in units if owner[unit] == name}


@settings(max_examples=60, deadline=None)
@given(histories, st.sampled_from(UNITS))
def test_one_unit_more_changes_what_is_used_of_one_data_set_only(
    tmp_path_factory: pytest.TempPathFactory, history: list[Use], unit: str
) -> None:
    """What parallel composition needs: its neighbours differ in that unit, in one data set."""
    folder = tmp_path_factory.mktemp("keys")
    with_it, without = used(folder, history), used(folder, history, without=unit)
    differing = {
        name
        for (name, _), one, other in zip(history, with_it, without, strict=True)
        if one != other
    }
    assert len(differing) <= 1
    assert [own - {unit} for own in with_it] == without


def test_the_file_holds_no_key_and_what_leaves_says_nothing(tmp_path: Path) -> None:
    registers = [UnitKeys(tmp_path / name, "person") for name in ("x", "y")]
    for register in registers:
        register.own("notes", records(UNITS))
    first, other = (set(json.loads(p.read_text().splitlines()[1])["keys"])
                    for p in (tmp_path / "x", tmp_path / "y"))  # fmt: skip
    assert not first & other
    assert b"person-1" not in (tmp_path / "x").read_bytes()
    states = {register.state(label) for register in registers for label in (b"1", b"2")}
    assert len(states) == 4


def test_a_state_is_of_one_register_now_or_before_it_grew(tmp_path: Path) -> None:
    register = UnitKeys(tmp_path / "x", "person")
    register.own("notes", records(UNITS[:3]))
    old = (tmp_path / "x").read_bytes()
    before = register.state(b"plan")
    register.own("notes", records(UNITS))
    now = UnitKeys(tmp_path / "x", "person").state(b"plan")
    assert before != now == register.state(b"plan")
    assert register.has_been(b"plan", before)
    assert register.has_been(b"plan", now)
    assert not register.has_been(b"another plan", before)
    (tmp_path / "x").write_bytes(old)
    assert not UnitKeys(tmp_path / "x", "person").has_been(b"plan", now)
    assert not UnitKeys(tmp_path / "y", "person").has_been(b"plan", before)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: b"",
        lambda data: data.replace(b'"keys"', b'"kees"'),
        lambda data: data.replace(b'"field":"person"', b'"field": "person"'),
    ],
    ids=["torn", "empty", "renamed", "respelt"],
)
def test_a_damaged_register_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x"
    UnitKeys(path, "person").own("notes", records(UNITS))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(NodeError, match="damaged file"):
        UnitKeys(path, "person")


def test_keys_of_another_field_are_refused(tmp_path: Path) -> None:
    """The same person under a patient's and an insurer's number would seem to be two."""
    UnitKeys(tmp_path / "x", "person").own("notes", records(UNITS))
    with pytest.raises(NodeError, match="Expected unit keys of the field 'person'"):
        UnitKeys(tmp_path / "x", "insured")


# The node: two data sets of ten persons each, five of whom are in both.

APART = {"keep_data_sets_apart": True, "epsilon": 70.0, "epsilon_if_all_others_collude": 70.0}


def change(hands: Hands, file: str, **values: Any) -> None:
    path = hands.federation.homes.nodes["north"] / file
    write_toml(path, tomllib.loads(path.read_text()) | values)
    hands.reopen("north")


def shard(hands: Hands, name: str, persons: Sequence[int]) -> Path:
    path = hands.federation.homes.root / f"{name}.jsonl"
    lines = [{"text": f"left knee mild scan {p}", "person": f"north-{p}"} for p in persons]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def take_up(hands: Hands, name: str, persons: Sequence[int], **clauses: Any) -> None:
    """North's officers sign off another data set, and its node starts again."""
    home = hands.federation.homes.nodes["north"]
    node_file = tomllib.loads((home / NODE_FILE).read_text())
    write_toml(home / NODE_FILE, node_file | {"data": str(shard(hands, name, persons))})
    change(hands, CONSENT_FILE, data_set=name, **{**APART, **clauses})


@pytest.fixture
def first(hands: Hands) -> Hands:
    """A run on data set a; what it cost leaves no room for another on the same units."""
    take_up(hands, "a", range(10))
    hands.release("north", hands.plan())
    return hands


def refusal(hands: Hands, run: str) -> tuple[PlanCode, str]:
    with pytest.raises(PlanRefused) as caught:
        hands.release("north", hands.plan(run=run))
    return caught.value.code, caught.value.clause


def trainer_of(hands: Hands) -> LocalTrainer:
    held = hands.nodes["north"]._seats._newest
    assert held is not None
    return held[1].trainer


def test_another_data_set_has_a_budget_of_its_own(first: Hands) -> None:
    take_up(first, "b", range(5, 15))
    first.release("north", first.plan(run="b"))
    reserved = first.federation.bodies("north", "run-reserved")
    assert [(r["data_set"], r["kept_apart"]) for r in reserved] == [("a", True), ("b", True)]
    report = first.federation.verified()["north"]
    assert report.epsilon_micro == max(r["epsilon_micro"] for r in reserved)
    assert report.delta_1e15 == max(r["delta_1e15"] for r in reserved)
    assert refusal(first, "b-again") == (PlanCode.OVER_BUDGET, "delta")
    take_up(first, "a", range(10))
    assert refusal(first, "a-again") == (PlanCode.OVER_BUDGET, "delta")


def test_units_of_the_first_are_left_out_of_the_second(first: Hands) -> None:
    """Five of ten persons: the released sum is that of the other five alone."""
    assert trainer_of(first).unit_count == 10
    take_up(first, "b", range(5, 15))
    first.release("north", first.plan(run="b"))
    local = trainer_of(first)
    config = DataConfig(text_fields=("text",), unit_field="person")
    alone = read_shard(shard(first, "alone", range(10, 15)), config)
    model, tokenizer = load_model(first.federation.settings.base_model)
    prepare(model, RECIPE)
    expected = LocalTrainer(model, unit_rows(alone, tokenizer, RECIPE), RECIPE, pad_draws=False)
    everyone = np.arange(5)
    step = first.plan().step
    assert local.unit_count == 5
    assert np.array_equal(local.clipped_sum(everyone, step), expected.clipped_sum(everyone, step))


def test_the_officers_may_look_before_a_run(first: Hands) -> None:
    take_up(first, "b", range(5, 15))
    home = first.federation.homes.nodes["north"]
    before = (home / UNIT_KEYS_FILE).read_bytes()
    result = CliRunner().invoke(privacy_app, ["disjoint", str(home), "--json"])
    assert json.loads(result.output) == {"data_set": "b", "units": 10, "elsewhere": 5}
    take_up(first, "b", range(10, 15))
    result = CliRunner().invoke(privacy_app, ["disjoint", str(home)])
    assert "0 of the 5 units to train on in 'b' belong to another data set: disjoint" in (
        result.output
    )
    assert (home / UNIT_KEYS_FILE).read_bytes() == before
    change(first, CONSENT_FILE, keep_data_sets_apart=False)
    result = CliRunner().invoke(privacy_app, ["disjoint", str(home)])
    assert (result.exit_code, "keep_data_sets_apart = true" in result.output) == (2, True)


def test_nobody_may_be_left_and_the_node_releases_all_the_same(first: Hands) -> None:
    """A refusal would tell that all were in both."""
    take_up(first, "b", range(10))
    first.release("north", first.plan(run="b"))
    assert trainer_of(first).unit_count == 0
    assert first.federation.verified()["north"].is_ok


def test_without_the_clause_runs_add_up(hands: Hands) -> None:
    take_up(hands, "a", range(10), keep_data_sets_apart=False)
    hands.release("north", hands.plan())
    take_up(hands, "b", range(10, 20), keep_data_sets_apart=False)
    assert refusal(hands, "b") == (PlanCode.OVER_BUDGET, "delta")
    assert not (hands.federation.homes.nodes["north"] / UNIT_KEYS_FILE).exists()


def test_a_run_from_before_the_clause_counts_for_everyone(hands: Hands) -> None:
    """Nothing says whose units it used."""
    take_up(hands, "a", range(10), keep_data_sets_apart=False)
    hands.release("north", hands.plan())
    take_up(hands, "b", range(10, 20))
    assert refusal(hands, "b") == (PlanCode.OVER_BUDGET, "delta")


@pytest.mark.parametrize("loss", ["removed", "new", "older"])
def test_a_register_that_is_not_the_ledgers_stops_the_node(first: Hands, loss: str) -> None:
    register = first.federation.homes.nodes["north"] / UNIT_KEYS_FILE
    older = register.read_bytes()
    take_up(first, "b", range(5, 15))
    first.release("north", first.plan(run="b"))
    if loss == "older":
        register.write_bytes(older)
    else:
        register.unlink()
    if loss == "new":
        UnitKeys(register, "person").own("b", records([f"north-{n}" for n in range(5, 15)]))
    with pytest.raises(NodeError, match="the register that this node's releases were made by"):
        first.reopen("north")
    # Without it the clause can only be withdrawn, and the next run is added to the largest.
    change(first, CONSENT_FILE, keep_data_sets_apart=False)
    assert refusal(first, "c") == (PlanCode.OVER_BUDGET, "delta")


def test_a_run_that_began_apart_does_not_go_on_otherwise(first: Hands) -> None:
    change(first, CONSENT_FILE, keep_data_sets_apart=False)
    with pytest.raises(PlanRefused) as caught:
        first.release("north", first.plan(2))
    assert caught.value.clause == "keep_data_sets_apart"
    assert len(first.federation.bodies("north", "release-debited")) == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["own", "append"])
def test_a_death_while_units_are_bound_costs_nothing_and_forgets_nothing(
    hands: Hands, step: str, when: str
) -> None:
    take_up(hands, "a", range(10))
    with dying(UnitKeys if step == "own" else LedgerLog, step, when=when):
        hands.release("north", hands.plan())
    hands.reopen("north")
    hands.release("north", hands.plan())
    (debit,) = hands.federation.bodies("north", "release-debited")
    register = UnitKeys(hands.federation.homes.nodes["north"] / UNIT_KEYS_FILE, "person")
    assert register.has_been(bytes.fromhex(debit["plan_digest"]), debit["unit_keys"])
    assert register.elsewhere("b", [f"north-{n}" for n in range(20)]) == 10
    assert hands.federation.verified()["north"].is_ok


def test_a_module_is_charged_beside_the_largest(first: Hands) -> None:
    """Its training leaves nobody out: five of its persons were in the run on a."""
    take_up(first, "b", range(5, 15), owned_experts_may_leave=True)
    first.nodes["north"].close()
    order = ExpertsOrder(**{**dict(ORDER), "delta": None})
    home = first.federation.homes.nodes["north"]
    with pytest.raises(PlanRefused) as caught:
        train_experts(home, order, ["ward knee left mild scan " * 20], runtime="simulate")
    assert (caught.value.code, caught.value.clause) == (PlanCode.OVER_BUDGET, "delta")
    assert "over the data's life" in str(caught.value)


def test_what_is_charged_beside_it_is_the_largest_that_any_unit_bears(first: Hands) -> None:
    """The books' figure for a new run on a, on b, and for one that is not kept apart."""
    (cost,) = first.federation.bodies("north", "run-reserved")
    charged = (cost["epsilon_micro"] / EPSILON_UNITS, cost["delta_1e15"] / DELTA_UNITS)
    assert first.nodes["north"]._books.spent_elsewhere("new", apart=True) == charged
    take_up(first, "b", range(5, 15))
    assert first.nodes["north"]._books.spent_elsewhere("new", apart=True) == (0.0, 0.0)
    assert first.nodes["north"]._books.spent_elsewhere("module") == charged
    change(first, CONSENT_FILE, keep_data_sets_apart=False)
    assert first.nodes["north"]._books.spent_elsewhere("new", apart=True) == charged
