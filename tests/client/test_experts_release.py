"""Owned experts leave under the consent, the budget and a debit, or not at all."""

import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from client.experts_order import make_job, public_tokens
from client.experts_training import bank_layout
from client.histories import FORK_FILE, RESTORED_FILE
from client.module_outbox import ModuleError
from client.node import Node
from models.checkpoint import load_model, model_digest
from models.expert_module import PrivacyClaim, card_path, read_card, read_module
from models.owned import branch
from models.vector import trainable_layout
from privacy.canonical import canonical_bytes
from privacy.dp.local_plan import LocalPlan
from privacy.experts_job import ExpertsJob
from privacy.ledger.charges import schedule_epsilon_micro
from privacy.round_plan import PlanCode, PlanRefused
from tests.experts_release import ORDER, OWNER, Home, Make
from tests.small_federation import Ground


def test_a_module_from_order_to_composition(home: Home, ground: Ground, tmp_path: Path) -> None:
    """What leaves is a module of the base; card, ledger and accountant agree."""
    sealed = home.train()
    weights = sealed.publish(home.path.parent / "out")
    base, _ = load_model(ground.base_model)
    module = read_module(weights, base.config, model_digest(base))
    claim = module.card.privacy
    assert isinstance(claim, PrivacyClaim)
    (reserved,) = home.bodies("run-reserved")
    (debit,) = home.bodies("experts-debited")
    assert (claim.epsilon_micro, claim.delta_1e15) == (
        reserved["epsilon_micro"],
        reserved["delta_1e15"],
    )
    assert claim.epsilon_micro <= 8_000_000
    assert claim.epsilon_micro >= schedule_epsilon_micro(reserved["event"], 1, claim.delta_1e15)
    assert claim.unit == "person"
    assert claim.ledger == "north, entry 1, run 'owned-experts', seeded, not private"
    assert (debit["owner"], debit["sealed_digest"]) == (OWNER, weights.stem)
    assert debit["event"] == reserved["event"]
    job = ExpertsJob.model_validate_json(canonical_bytes(module.card.recipe["job"]))
    assert job.digest().hex() == debit["plan_digest"]
    assert job.plan.event_json() == debit["event"]
    report = home.report()
    assert report.is_ok, report.failures
    assert set(report.modules) == {weights.stem}


def test_the_card_tells_nothing_that_was_computed_from_data(make_home: Make) -> None:
    """Two nodes with other data write cards that differ in digests alone."""
    cards = []
    for records in (40, 22):
        home = make_home()
        data = home.path / "data.jsonl"
        lines = [{"text": f"pain knee {n}", "person": f"p{n % 9}"} for n in range(records)]
        data.write_text("\n".join(map(json.dumps, lines)))
        home.set_node(data=str(data))
        card = json.loads(card_path(home.train().weights).read_text())
        cards.append(
            {name: card[name] for name in card if name not in ("weights_digest", "tensors")}
        )
    assert cards[0] == cards[1]


def test_the_same_order_again_sends_the_same_bytes_and_charges_nothing(home: Home) -> None:
    first = home.train()
    assert home.train() == first
    assert len(home.bodies("run-reserved")) == len(home.bodies("experts-debited")) == 1


def test_a_second_module_needs_a_run_of_its_own(home: Home) -> None:
    home.train()
    with pytest.raises(PlanRefused, match="got another mechanism or job"):
        home.train(gain=2.0)
    second = home.train(run="second", gain=2.0)
    assert second.digest in home.report().modules
    assert len(home.bodies("run-reserved")) == 2
    assert home.report().epsilon_micro == 2 * home.bodies("run-reserved")[0]["epsilon_micro"]


def test_another_mechanism_in_a_run_is_refused(home: Home) -> None:
    home.train()
    with pytest.raises(PlanRefused, match="got another mechanism or job"):
        home.train(steps=5)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "experts stay": (
        {"owned_experts_may_leave": False}, {}, "owned-experts", "owned_experts_may_leave",
    ),
    "epsilon of a run": ({"epsilon_per_run": 7.0}, {}, "over-budget", "epsilon_per_run"),
    "delta": ({"delta": 1e-6}, {}, "over-budget", "delta"),
    "tensors": ({"trainable": ["blocks.0.*"]}, {}, "not-trainable", "trainable"),
    "expired": ({"expires": "2020-01-01"}, {}, "expired", "expires"),
    "seeded without a clause": (
        {"allow_seeded_simulation": False}, {}, "seeded", "allow_seeded_simulation",
    ),
    "seeded outside a simulation": ({}, {"runtime": "local"}, "seeded", "allow_seeded_simulation"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_its_clause_and_is_written_down(make_home: Make, case: str) -> None:
    clauses, changes, code, clause = REFUSALS[case]
    home = make_home(**clauses)
    with pytest.raises(PlanRefused) as caught:
        home.train(**changes)
    assert (str(caught.value.code), caught.value.clause) == (code, clause)
    (refusal,) = home.bodies("refusal")
    assert (refusal["code"], refusal["clause"]) == (code, clause)
    assert not home.bodies("run-reserved")
    assert not home.bodies("experts-debited")
    assert not list(home.path.rglob("*.safetensors"))
    assert home.report().is_ok


def test_the_life_of_the_data_bounds_all_modules_together(make_home: Make) -> None:
    home = make_home(epsilon=15.0)
    home.train()
    with pytest.raises(PlanRefused) as caught:
        home.train(run="second")
    assert caught.value.clause == "epsilon"
    assert len(home.bodies("run-reserved")) == 1


@pytest.fixture
def node(home: Home) -> Iterator[Node]:
    opened = Node(home.path, "simulate")
    yield opened
    opened.close()


@pytest.fixture
def job(home: Home, node: Node, ground: Ground) -> ExpertsJob:
    """The job that the command would write."""
    base, tokenizer = load_model(ground.base_model)
    token_BT = public_tokens(home.public, tokenizer, ORDER.sequence_length)
    return make_job(ORDER, node.config, node.consent, base, token_BT)


def with_unit(job: ExpertsJob, unit: str) -> LocalPlan:
    parts = ("embedding", "step")
    changed = {name: getattr(job.plan, name).model_copy(update={"unit": unit}) for name in parts}
    return LocalPlan(**{**dict(job.plan), **changed})


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda job: {"owner": "south"}, "members"),
        (lambda job: {"plan": with_unit(job, "record")}, "unit"),
        (lambda job: {"trainable": job.trainable[:-1]}, "trainable"),
        (lambda job: {"trainable": (job.trainable[0],) * 4}, "trainable"),
    ],
    ids=["another owner", "another unit", "fewer tensors", "one tensor four times"],
)
def test_a_job_that_the_command_would_not_write(
    home: Home, node: Node, job: ExpertsJob, change: Callable[[ExpertsJob], Any], clause: str
) -> None:
    """The gate decides on the job it is given, not on the command that made it."""
    foul = job.model_copy(update=change(job))
    with pytest.raises(PlanRefused) as caught:
        node.release_experts(foul, lambda _: pytest.fail("nothing may be opened"))
    assert caught.value.clause == clause
    assert home.bodies("refusal")[-1]["plan_digest"] == foul.digest().hex()


def test_a_refusal_on_opening_is_written_down_and_charges_nothing(
    home: Home, node: Node, job: ExpertsJob
) -> None:
    def refuse(_: Path) -> Any:
        raise PlanRefused(PlanCode.WRONG_MODEL, "trainable", "another base")

    with pytest.raises(PlanRefused, match="another base"):
        node.release_experts(job, refuse)
    assert home.bodies("refusal")[0]["code"] == "wrong-model"
    assert not home.bodies("run-reserved")


def test_real_entropy_is_used_without_a_seed(make_home: Make, ground: Ground) -> None:
    digests = set()
    for _ in range(2):
        home = make_home(seed=None, allow_seeded_simulation=False)
        sealed = home.train(runtime="local")
        digests.add(sealed.digest)
        assert home.bodies("experts-debited")[0]["noise"] == "csprng"
        assert read_card(sealed.weights).privacy.ledger.endswith("csprng")
        assert home.report().is_ok
    assert len(digests) == 2


def test_a_forked_ledger_stops_owned_experts_too(home: Home) -> None:
    (home.path / FORK_FILE).write_text("two histories")
    with pytest.raises(PlanRefused, match="two: see FORK"):
        home.train()
    assert home.bodies("refusal")[0]["code"] == "forked-ledger"


def test_a_restored_ledger_stops_owned_experts_too(home: Home) -> None:
    (home.path / RESTORED_FILE).write_text("an older copy")
    with pytest.raises(PlanRefused, match="own ledger, got two: see RESTORED"):
        home.train()
    assert not home.bodies("run-reserved")
    assert not home.bodies("refusal")


def test_what_was_sealed_leaves_unchanged_or_not_at_all(home: Home, tmp_path: Path) -> None:
    sealed = home.train()
    sealed.weights.write_bytes(sealed.weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModuleError, match="the bytes that were sealed"):
        sealed.publish(tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    with pytest.raises(PlanRefused, match="this one stays charged"):
        home.train()
    assert len(home.bodies("experts-debited")) == 1


def test_a_published_copy_that_is_altered_is_found_offline(home: Home) -> None:
    weights = home.train().publish(home.path.parent / "out")
    assert home.report().is_ok
    card = json.loads(card_path(weights).read_text())
    card["privacy"]["epsilon_micro"] = 10
    card_path(weights).write_text(json.dumps(card))
    assert "its card is not the one that was debited" in "\n".join(home.report().failures)


@pytest.mark.parametrize("train_rows", [True, False])
def test_the_layout_is_that_of_a_branched_model(ground: Ground, train_rows: bool) -> None:
    base, _ = load_model(ground.base_model)
    found = bank_layout(base.config, (0, 2), train_rows=train_rows)
    branch(base, (0, 2), train_rows=train_rows)
    assert found == trainable_layout(base)
    assert all(isinstance(tensor, torch.Tensor) for tensor in base.parameters())


def test_the_last_day_counts(make_home: Make) -> None:
    home = make_home(expires=date.today().isoformat())
    home.train()
    assert home.report().is_ok
