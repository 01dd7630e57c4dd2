"""What `arion run plan` says that a run costs is what each member's node charges for it."""

from pathlib import Path

import pytest

from arion.run_file import load_run_file
from arion.run_order import order_run
from arion.toml_file import write_toml
from models.checkpoint import load_model
from models.recipe import prepare
from models.vector import trainable_layout
from privacy.dp.accountant import epsilon_after
from privacy.rounds import run_cost
from tests.secagg.conftest import build
from tests.small_federation import Ground

DELTA = 2e-10  # so small that 2^-40 of it shows


@pytest.mark.parametrize(
    ("members", "federation"),
    [
        (5, {"n_min": 4}),
        (8, {"groups": 2, "n_min": 3}),
        (60, {"sparse_graph": True, "n_min": 54, "colluders": 6}),
    ],
    ids=["complete", "groups", "sparse"],
)
def test_a_plan_says_what_nodes_charge(
    ground: Ground, tmp_path: Path, members: int, federation: dict[str, int]
) -> None:
    there = build(members, federation["n_min"], federation.get("colluders", 1))
    path = tmp_path / "run.toml"
    sections = {
        "model": {"base": str(ground.base_model)},
        "training": {"rounds": 3, "expected_batch": 24.0, "sequence_length": 24},
        "privacy": {"epsilon": 2.0, "delta": DELTA},
        "federation": federation,
        "service": {"units": dict.fromkeys(there.names, 40)},
    }
    write_toml(path, sections)
    order = order_run(load_run_file(path, {}), "run-1", "f", there.pins)
    model, _ = load_model(ground.base_model)
    prepare(model, order.settings.recipe)
    layout = trainable_layout(model)
    length = sum(size for _, size in layout)
    groups = order.settings.groups
    graph = {"degree": members // groups - 1} if groups > 1 else {}
    plan = there.plan(
        step=order.settings.step, trainable=layout, vector_length=length, groups=groups, **graph
    )
    consent = there.consent(
        epsilon=2.0,
        epsilon_per_run=2.0,
        epsilon_if_all_others_collude=9.0,
        delta=DELTA,
        sparse_graph=plan.is_sparse,
    )
    charged = run_cost(plan, consent)
    assert {member["epsilon"] for member in order.plan["members"].values()} == {charged.epsilon}
    assert charged.epsilon <= 2.0
    whole = epsilon_after(
        plan.step, plan.step.releases, charged.delta, vector_length=length, contributors=members
    )
    assert (charged.epsilon > whole) == plan.is_sparse
