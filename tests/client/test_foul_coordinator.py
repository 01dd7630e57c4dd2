"""Plans and requests that play foul: the node refuses, releases nothing, and writes down why."""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arion.toml_file import write_toml
from client.config import CONSENT_FILE, NODE_FILE
from client.outbox import Outbox
from models.training_settings import Recipe
from privacy.canonical import canonical_bytes, sha256_hex
from privacy.identity import IdentityKey, Signed
from privacy.rounds import PlanCode, PlanRefused, run_cost, sign_plan
from privacy.secagg.header import SecAggRefused
from privacy.secagg.parameters import quorum_for
from protos.round_messages import UploadRequest
from tests.client.refusals import ask, refused, rewrite_consent
from tests.small_federation import FEDERATION, NO_NOISE, RUN
from tests.small_hands import Hands


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (PlanCode.OVER_BUDGET, {"step": {"noise_multiplier": 0.2}}),
        (PlanCode.OVER_BUDGET, {"step": {"releases": 60}}),
        (PlanCode.OVER_BUDGET, {"step": {"sampling_probability": 1.0}}),
        (
            PlanCode.OVER_BUDGET,
            {"step": {"honest_survivors": 3}, "n_min": 4, "least_neighbours": 3},
        ),
        (PlanCode.NO_NOISE, {"step": NO_NOISE}),
        (PlanCode.WRONG_UNIT, {"step": {"unit": "record"}}),
        (PlanCode.COHORT_TOO_SMALL, {"step": {"honest_survivors": 1}, "n_min": 2}),
        (PlanCode.TOO_FEW_COLLUDERS, {}),
        (PlanCode.WRONG_SURVIVORS, {"step": {"honest_survivors": 4}}),
        (PlanCode.BAD_COHORT, {"cohort": ("east", "north", "south")}),
        (PlanCode.BAD_COHORT, {"cohort": ("east", "mallory", "north", "south", "west")}),
        (PlanCode.BAD_GRAPH, {"quorum": 2}),
        (PlanCode.WRONG_EVENT, {"dp_event": {"class_name": "NoOpDpEvent"}}),
        (PlanCode.WRONG_FEDERATION, {"federation": "another"}),
        (PlanCode.WRONG_RUNTIME, {"runtime": "flower"}),
        (PlanCode.WRONG_ROSTER, {"roster_digest": "0" * 64}),
        (PlanCode.OLD_ROUND, {"attempt": 4}),
        (PlanCode.OLD_ROUND, {"round": 7}),
        (PlanCode.WRONG_RECIPE, {"recipe_digest": "0" * 64}),
        (PlanCode.WRONG_MODEL, {"model_digest": "0" * 64}),
    ],
    ids=str,
)
def test_plans_beyond_the_consent(
    take: Callable[..., Hands], code: PlanCode, changes: dict[str, Any]
) -> None:
    hands = take()
    tighten(hands, code)
    plan = hands.plan(**changes)
    refused(hands, code, lambda: ask(hands, hands.request(plan)))


def tighten(hands: Hands, code: PlanCode) -> None:
    """Let north's consent allow the honest schedule and hardly more, or ask for two colluders."""
    if code is PlanCode.TOO_FEW_COLLUDERS:
        rewrite_consent(hands, tolerated_colluders=2)
    elif code is PlanCode.OVER_BUDGET:
        cost = run_cost(hands.plan(), hands.nodes["north"].consent)
        rewrite_consent(
            hands,
            epsilon=1.05 * cost.epsilon,
            epsilon_per_run=1.05 * cost.epsilon,
            epsilon_if_all_others_collude=1.05 * cost.epsilon_if_all_others_collude,
        )


def rewrite_node(hands: Hands, **changes: Any) -> None:
    """North's own settings change; None removes one."""
    path = hands.federation.homes.nodes["north"] / NODE_FILE
    values = tomllib.loads(path.read_text()) | changes
    write_toml(path, {name: value for name, value in values.items() if value is not None})
    hands.reopen("north")


def test_the_honest_schedule_is_within_the_tightened_consent(hands: Hands) -> None:
    tighten(hands, PlanCode.OVER_BUDGET)
    hands.release("north", hands.plan())
    assert len(hands.federation.bodies("north", "release-debited")) == 1


def test_a_second_run_beyond_the_life_of_the_data(hands: Hands) -> None:
    tighten(hands, PlanCode.OVER_BUDGET)
    hands.release("north", hands.plan())
    refused(hands, PlanCode.OVER_BUDGET, lambda: hands.release("north", hands.plan(run="b")), 1)


def test_figures_of_another_unit_are_not_added_up(hands: Hands) -> None:
    """A consent that turns from persons to the institution: its ledger says nothing of that."""
    hands.release("north", hands.plan())
    wide = {"epsilon": 200.0, "delta": 1e-4, "epsilon_if_all_others_collude": 100.0}
    rewrite_consent(hands, unit="institution", **wide)
    whole = {"unit": "institution", "sampling_probability": 1.0}
    plan = hands.plan(run="b", step=whole)
    refused(hands, PlanCode.OVER_BUDGET, lambda: hands.release("north", plan), 1)
    assert hands.federation.bodies("north", "refusal")[-1]["clause"] == "unit"


def test_an_expired_consent(hands: Hands) -> None:
    rewrite_consent(hands, expires=date(2020, 1, 1).isoformat())
    refused(hands, PlanCode.EXPIRED, lambda: hands.release("north", hands.plan()))


@pytest.mark.parametrize("change", ["edited", "missing"])
def test_a_consent_that_no_longer_stands(hands: Hands, change: str) -> None:
    path = hands.federation.homes.nodes["north"] / CONSENT_FILE
    if change == "edited":
        write_toml(path, tomllib.loads(path.read_text()) | {"purposes": ["something else"]})
    else:
        path.unlink()
    refused(hands, PlanCode.CONSENT_CHANGED, lambda: hands.release("north", hands.plan()))
    clauses = [body["clause"] for body in hands.federation.bodies("north", "refusal")]
    assert clauses == ["purposes" if change == "edited" else "(file)"]


def test_a_consent_edited_while_the_node_trains(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is sealed, the consent changes, nothing is debited and nothing leaves."""
    path = hands.federation.homes.nodes["north"] / CONSENT_FILE
    seal = Outbox.seal

    def seal_and_edit(*arguments: Any) -> Any:
        sealed = seal(*arguments)
        write_toml(path, tomllib.loads(path.read_text()) | {"purposes": ["something else"]})
        return sealed

    monkeypatch.setattr(Outbox, "seal", seal_and_edit)
    with pytest.raises(PlanRefused) as caught:
        hands.release("north", hands.plan())
    assert caught.value.code is PlanCode.CONSENT_CHANGED
    assert hands.federation.bodies("north", "release-debited") == []
    (refusal,) = hands.federation.bodies("north", "refusal")
    assert (refusal["code"], refusal["clause"]) == ("consent-changed", "purposes")


def test_a_plan_of_another_coordinator(hands: Hands) -> None:
    request = hands.request(hands.plan(), IdentityKey.generate())
    refused(hands, PlanCode.BAD_SIGNATURE, lambda: ask(hands, request))


@pytest.mark.parametrize("field", ["model_digest", "recipe_digest", "roster_digest"])
def test_a_plan_edited_after_signing(hands: Hands, field: str) -> None:
    request = hands.request(hands.plan())
    edited = hands.plan(**{field: "0" * 64}).payload()
    request = replace(request, plan=Signed(edited, request.plan.signature))
    refused(hands, PlanCode.BAD_SIGNATURE, lambda: ask(hands, request))


def test_a_plan_in_another_spelling(hands: Hands) -> None:
    payload = hands.plan().payload().replace(b":", b": ", 1)
    request = UploadRequest(hands.key.sign("plan", payload), b"{}")
    refused(hands, PlanCode.NOT_CANONICAL, lambda: ask(hands, request))


@pytest.mark.parametrize(
    "change",
    [
        lambda vector: vector[:-4] + np.float32(2.0).tobytes(),
        lambda vector: vector[:-4],
        lambda vector: vector + bytes(4),
        lambda vector: bytes(len(vector)),
        lambda vector: vector[:-4] + np.float32(np.nan).tobytes(),
    ],
    ids=["one weight", "shorter", "longer", "zeros", "not a number"],
)
def test_another_model_under_the_plans_digest(
    hands: Hands, change: Callable[[bytes], bytes]
) -> None:
    request = hands.request(hands.plan())
    refused(hands, PlanCode.WRONG_MODEL, lambda: ask(hands, request, change(hands.vector)))


def test_another_recipe_than_the_plan_names(hands: Hands) -> None:
    other = canonical_bytes(Recipe(sequence_length=8).model_dump(mode="json"))
    request = replace(hands.request(hands.plan()), recipe=other)
    refused(hands, PlanCode.WRONG_RECIPE, lambda: ask(hands, request))


@pytest.mark.parametrize(
    ("code", "recipe"),
    [
        (PlanCode.WRONG_RECIPE, b"{}"),
        (PlanCode.WRONG_RECIPE, b'{"kind":"pickle"}'),
        (PlanCode.WRONG_RECIPE, b"not json"),
        (
            PlanCode.WRONG_RECIPE,
            canonical_bytes(Recipe(sequence_length=33).model_dump(mode="json")),
        ),
        (PlanCode.NOT_TRAINABLE, canonical_bytes(Recipe(kind="lora").model_dump(mode="json"))),
    ],
    ids=["defaults", "unknown kind", "garbage", "longer than the model", "other tensors"],
)
def test_a_recipe_that_the_plan_names_and_the_node_does_not_run(
    hands: Hands, code: PlanCode, recipe: bytes
) -> None:
    if code is PlanCode.NOT_TRAINABLE:
        recipe = recipe.replace(b'"sequence_length":128', b'"sequence_length":24')
    plan = hands.plan(recipe_digest=sha256_hex(recipe))
    request = UploadRequest(sign_plan(hands.key, plan), recipe)
    refused(hands, code, lambda: ask(hands, request))


def test_tensors_that_the_consent_keeps_out(hands: Hands) -> None:
    rewrite_consent(hands, trainable=["blocks.*"])
    refused(hands, PlanCode.NOT_TRAINABLE, lambda: hands.release("north", hands.plan()))


@pytest.mark.parametrize("place", [(1, 1), (1, 2), (1, 3)])
def test_an_older_round_under_new_bytes(hands: Hands, place: tuple[int, int]) -> None:
    hands.release("north", hands.plan(2, 1))
    old = hands.plan(*place)
    refused(hands, PlanCode.OLD_ROUND, lambda: hands.release("north", old), sealed=1)


def test_the_same_round_under_another_plan(hands: Hands) -> None:
    hands.release("north", hands.plan())
    other = hands.plan(quorum=4)
    refused(hands, PlanCode.OLD_ROUND, lambda: hands.release("north", other), sealed=1)


def test_an_older_plan_whose_upload_is_gone(hands: Hands) -> None:
    first = hands.plan()
    hands.release("north", first)
    hands.release("north", hands.plan(2))
    refused(hands, PlanCode.OLD_ROUND, lambda: hands.release("north", first), sealed=1)


@pytest.mark.parametrize(
    "step", [{"noise_multiplier": 1.5}, {"sampling_probability": 0.4}, {"releases": 5}], ids=str
)
def test_a_mechanism_that_changes_within_a_run(hands: Hands, step: dict[str, Any]) -> None:
    hands.release("north", hands.plan())
    other = hands.plan(2, step=step)
    refused(hands, PlanCode.WRONG_EVENT, lambda: hands.release("north", other), sealed=1)


@pytest.mark.parametrize("first", [0, 2], ids=["more members", "fewer members"])
def test_a_run_keeps_its_reservation_where_others_are_pinned(hands: Hands, first: int) -> None:
    """Who else may be in a sum changes the charge of a run; what was charged stays."""
    members = dict(hands.nodes["north"].consent.members)
    strangers = {f"away-{n}": IdentityKey.generate().public_key.hex() for n in range(2)}
    for number, more in ((1, first), (2, 2 - first)):
        named = dict(list(strangers.items())[:more])
        rewrite_consent(hands, members={**members, **named})
        quorum = quorum_for(len(members) + more, 1)
        hands.release("north", hands.plan(number, quorum=quorum))
    (reserved,) = hands.federation.bodies("north", "run-reserved")
    assert reserved["basis"]["contributors"] == len(members) + first
    assert len(hands.federation.bodies("north", "release-debited")) == 2
    assert hands.federation.verified()["north"].is_ok


def test_a_schedule_that_is_used_up(take: Callable[..., Hands]) -> None:
    hands = take(step={"releases": 3})
    for place in ((1, 1), (1, 2), (2, 1)):
        hands.release("north", hands.plan(*place))
    refused(hands, PlanCode.OVER_BUDGET, lambda: hands.release("north", hands.plan(3)), sealed=1)
    assert len(hands.federation.bodies("north", "release-debited")) == 3


def test_a_run_that_was_closed(hands: Hands) -> None:
    hands.release("north", hands.plan())
    node = hands.nodes["north"]
    assert len(node._epochs.files) == Path("/dev/shm").is_dir()
    node.close_run(FEDERATION, RUN)
    assert node._epochs.files == []
    with pytest.raises(SecAggRefused, match="no such epoch's keys"):
        hands.release("north", hands.plan(2))
    with pytest.raises(PlanRefused, match="schedule is used up"):
        node._books.reserve(hands.plan(2))
    assert len(hands.outbox("north")) == 1


def test_closing_a_run_of_another_federation(hands: Hands) -> None:
    hands.release("north", hands.plan())
    with pytest.raises(PlanRefused, match="Expected federation"):
        hands.nodes["north"].close_run("another", RUN)
    hands.release("north", hands.plan(2))


@pytest.mark.parametrize("consent", [True, False])
def test_a_seeded_plan_at_a_node_without_a_seed(hands: Hands, consent: bool) -> None:
    rewrite_node(hands, seed=None)
    rewrite_consent(hands, allow_seeded_simulation=consent)
    refused(hands, PlanCode.SEEDED, lambda: hands.release("north", hands.plan()))
