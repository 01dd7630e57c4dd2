"""What a run would cost, worked out before it: against accountant, brute force, consents."""

import json
import math
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from arion.mechanism import Cohort
from arion.planner import Outlook, consider, members_needed, noise_to_signal, plan_run
from arion.privacy_cli import privacy_app
from arion.run_file import RunFile, RunFileError
from models.config import preset
from models.decoder import Decoder
from models.recipe import prepare
from models.training_settings import Recipe
from models.vector import trainable_layout
from privacy.consent import Consent, parse_consent
from privacy.dp.accountant import epsilon
from privacy.dp.plan import PrivateStep
from privacy.dp.rdp_filter import charge_of, open_filter

RUN = RunFile.model_validate(
    {
        "training": {"rounds": 4, "expected_batch": 64, "kind": "lora", "lora_rank": 2},
        "privacy": {"epsilon": 3.0, "delta": 1e-5},
    }
)


@pytest.fixture(scope="module")
def outlook() -> Outlook:
    return plan_run(RUN, nodes=5, units_per_node=200, unit="patient", target=0.1)


def pins(count: int) -> dict[str, str]:
    return {f"member-{number}": f"{number:064x}" for number in range(2, count + 2)}


def consent_with(**changes: object) -> Consent:
    clauses = {
        "federation": "clinics",
        "coordinator_key": "01" * 32,
        "members": {name: f"{number:02x}" * 32 for number, name in enumerate("abcde", start=2)},
        "purposes": ["answering questions"],
        "data_set": "notes",
        "unit": "patient",
        "accountant": "schedule",
        "epsilon": 9.5,
        "delta": 9.5e-5,
        "epsilon_per_run": 3.5,
        "epsilon_if_all_others_collude": 1000.0,
        "smallest_cohort": 3,
        "tolerated_colluders": 1,
        "trainable": ["*"],
        "runtimes": ["simulate"],
        "expires": "2030-12-31",
    }
    return parse_consent({**clauses, **changes})


def test_the_charge_is_the_accountants(outlook: Outlook) -> None:
    rounds, charged = outlook.epsilon[-1]
    assert (rounds, outlook.step.releases) == (4, 4)
    assert charged == epsilon(
        outlook.step.schedule_event(), 1e-5, vector_length=outlook.vector_length, contributors=5
    )
    assert 2.9 < charged <= 3.0
    assert [value for _, value in outlook.epsilon] == sorted(v for _, v in outlook.epsilon)
    assert outlook.epsilon_if_all_others_collude > charged


def test_one_round_more_would_be_over_the_budget(outlook: Outlook) -> None:
    longer = outlook.step.model_copy(update={"releases": outlook.rounds_in_budget + 1})
    assert outlook.rounds_in_budget >= 4
    assert epsilon(longer.schedule_event(), 1e-5, vector_length=outlook.vector_length) > 3.0


def test_the_vector_is_counted_without_weights(outlook: Outlook) -> None:
    model = Decoder(preset("nano"))
    prepare(model, Recipe(kind="lora", lora_rank=2))
    assert outlook.vector_length == sum(size for _, size in trainable_layout(model))


def test_members_needed_is_the_first_that_reach_the_target(outlook: Outlook) -> None:
    away = outlook.cohort.nodes - outlook.cohort.n_min + outlook.cohort.colluders

    def ratio(members: int) -> float:
        cohort = Cohort(members, members - away + outlook.cohort.colluders, 1)
        values = {
            **outlook.step.model_dump(),
            "expected_batch": outlook.step.expected_batch * members / outlook.cohort.nodes,
            "honest_survivors": members - away,
        }
        return noise_to_signal(PrivateStep.model_construct(**values), cohort, outlook.vector_length)

    assert ratio(5) == pytest.approx(outlook.noise_to_signal)
    assert ratio(outlook.members_needed) <= 0.1 < ratio(outlook.members_needed - 1)
    assert members_needed(1e-9, outlook.cohort, 1.0) == 3


def test_noise_to_signal_is_that_of_the_sum(outlook: Outlook) -> None:
    step = outlook.step
    total = step.noise_multiplier * 1.001 * math.sqrt(5 / 4)  # of five members, four honest
    expected = total * math.sqrt(outlook.vector_length) / 64
    assert outlook.noise_to_signal == pytest.approx(expected)


def test_a_fitting_consent_agrees(outlook: Outlook) -> None:
    verdict = consider(outlook, consent_with())
    # epsilon would hold three, but each takes the share of delta of a run of epsilon_per_run
    assert (verdict.refused, verdict.runs_in_life) == ((), 2)


def test_a_filter_holds_what_it_admits_and_no_more(outlook: Outlook) -> None:
    limits = open_filter(9.5, 9.5e-5)
    each = charge_of(outlook.step.event(), vector_length=outlook.vector_length, contributors=5)
    held = consider(outlook, consent_with()).releases_by_filter
    assert held > 3 * 4  # the three runs that fit by addition
    assert limits.admits(each.times(held))
    assert not limits.admits(each.times(held + 1))
    tiny = {"epsilon": 0.01, "epsilon_per_run": 0.01, "delta": 1e-9}
    assert consider(outlook, consent_with(**tiny)).releases_by_filter == 0


def test_a_consent_with_a_filter_is_held_against_the_filter(outlook: Outlook) -> None:
    wide = {"accountant": "filter", "epsilon_per_run": 9.5}
    agreed = consider(outlook, consent_with(**wide))
    assert agreed.refused == ()
    assert agreed.runs_in_life == agreed.releases_by_filter // 4 > 1  # of epsilon 9.5 each
    (reason,) = consider(outlook, consent_with(**{**wide, "epsilon_per_run": 0.8})).refused
    assert reason.startswith("epsilon_per_run = 0.8: the filter holds 0 of the run's 4 releases")


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "record"},
        {"tolerated_colluders": 2},
        {"epsilon_per_run": 1.0},
        {"epsilon_if_all_others_collude": 4.0},
        {"delta": 1e-8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_clause_that_would_refuse_is_named(
    outlook: Outlook, changes: dict[str, object]
) -> None:
    clause = next(iter(changes)).replace("delta", "epsilon_per_run")
    refused = consider(outlook, consent_with(**changes)).refused
    assert any(reason.startswith(clause) for reason in refused)


def test_a_random_graph_wants_a_clause_of_its_own(outlook: Outlook) -> None:
    wide = replace(outlook, cohort=Cohort(60, 54, 6))
    (reason,) = consider(wide, consent_with(members=pins(50))).refused[1:]
    assert reason == "sparse_graph = False: a sum is over a random graph of 60 members"
    allows = consent_with(members=pins(60), sparse_graph=True)
    assert consider(wide, allows).refused == ()


def test_a_run_of_others_than_the_consent_pins(outlook: Outlook) -> None:
    (reason,) = consider(outlook, consent_with(members=pins(4))).refused
    assert reason == "the run has 5 members, and it pins 4"


def test_a_consent_that_has_expired(outlook: Outlook) -> None:
    consent = consent_with(expires="2026-01-02")
    assert consider(outlook, consent, date(2026, 1, 2)).refused == ()
    (reason,) = consider(outlook, consent, date(2026, 1, 3)).refused
    assert reason == "expires = 2026-01-02: today is 2026-01-03"


def test_a_run_without_noise_has_no_outlook() -> None:
    run = RunFile.model_validate({"privacy": {"enabled": False}})
    with pytest.raises(RunFileError, match=r"privacy\.enabled"):
        plan_run(run, nodes=4, units_per_node=10, unit="record", target=1.0)


def cli(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(privacy_app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_calibrate_and_epsilon_are_inverse() -> None:
    schedule = ("--delta", "1e-6", "--rounds", "30", "--sampling", "0.05", "--json")
    code, out = cli("calibrate", "--epsilon", "2", *schedule)
    noise = json.loads(out)["noise_multiplier"]
    assert code == 0
    spent = json.loads(cli("epsilon", "--noise-multiplier", str(noise), *schedule)[1])["epsilon"]
    assert 1.98 < spent <= 2.0
    less = json.loads(cli("epsilon", "--noise-multiplier", "0.5", *schedule)[1])["epsilon"]
    assert less > spent


def test_an_institution_is_a_unit_that_is_not_sampled() -> None:
    """Noise of 30 over 300 rounds: one Gaussian of sensitivity sqrt(300) / 30."""
    schedule = ("--delta", "1e-6", "--rounds", "300", "--sampling", "1", "--unit", "institution")
    code, out = cli("epsilon", "--noise-multiplier", "30", *schedule, "--json")
    spent = json.loads(out)["epsilon"]
    mu = math.sqrt(300) / 30
    tail = norm.cdf(mu / 2 - spent / mu) - math.exp(spent) * norm.cdf(-mu / 2 - spent / mu)
    assert code == 0
    assert 0.99e-6 < tail <= 1e-6
    code, out = cli("calibrate", "--epsilon", str(spent), *schedule, "--json")
    assert json.loads(out)["noise_multiplier"] == pytest.approx(30, rel=3e-3)
    for command in (("epsilon", "--noise-multiplier", "30"), ("calibrate", "--epsilon", "1")):
        code, out = cli(*command, *schedule, "--sampling", "0.01")
        assert code == 2
        assert "Expected --sampling 1 for the unit institution" in out


def test_a_run_for_institutions_is_planned_by_its_members(tmp_path: Path) -> None:
    run = RUN.model_copy(update={"privacy": RUN.privacy.model_copy(update={"unit": "institution"})})
    found = plan_run(run, nodes=40, units_per_node=1, unit="institution", target=1.0)
    assert (found.step.sampling_probability, found.step.expected_batch) == (1.0, 40.0)
    assert consider(found, consent_with()).refused[0].startswith("unit = patient")
    assert not consider(found, consent_with(unit="institution", members=pins(40))).refused
    with pytest.raises(RunFileError, match="--units-per-node 1"):
        plan_run(run, nodes=40, units_per_node=200, unit="institution", target=1.0)
    path = tmp_path / "run.toml"
    path.write_text('[training]\nrounds = 2\n[privacy]\nunit = "institution"\n')
    arguments = (path, "--nodes", "5", "--units-per-node", "1")
    code, out = cli("plan", *arguments)
    assert code == 0
    assert "unit institution" in out
    assert "sampling 1, batch 5," in out
    code, out = cli("plan", *arguments, "--unit", "patient")
    assert code == 2
    assert "Expected the run file's unit 'institution'" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("calibrate", "--epsilon", "-1", "--sampling", "0.1"),
        ("calibrate", "--epsilon", "1", "--sampling", "2"),
        ("epsilon", "--noise-multiplier", "0", "--sampling", "0.1"),
    ],
)
def test_impossible_schedules_are_one_line(arguments: tuple[str, ...]) -> None:
    code, out = cli(*arguments, "--delta", "1e-6", "--rounds", "3")
    assert code == 2
    assert out.startswith("error: ")


def test_the_plan_command_says_who_would_refuse(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text('[training]\nrounds = 2\nkind = "lora"\nlora_rank = 1\n')
    strict = tmp_path / "strict.toml"
    clauses = consent_with(epsilon_per_run=0.5).model_dump(mode="json")
    lines = [f"{k} = {json.dumps(v)}" for k, v in clauses.items() if k != "members"]
    members = [f'{name} = "{key}"' for name, key in clauses["members"].items()]
    strict.write_text("\n".join([*lines, "[members]", *members]) + "\n")
    arguments = (run, "--nodes", "5", "--units-per-node", "100", "--unit", "patient")
    code, out = cli("plan", *arguments, "--consent", strict)
    assert code == 1
    assert "refuses by epsilon_per_run = 0.5" in out
    loose = tmp_path / "loose.toml"
    loose.write_text(strict.read_text().replace("epsilon_per_run = 0.5", "epsilon_per_run = 9.0"))
    code, out = cli("plan", *arguments, "--consent", loose)
    assert code == 0
    assert re.search(r"\d+ releases; a Rényi filter \(.*\) would hold [1-9]\d*\n", out)
    chosen = tmp_path / "filter.toml"
    whole = loose.read_text().replace("epsilon_per_run = 9.0", "epsilon_per_run = 9.5")
    chosen.write_text(whole.replace('"schedule"', '"filter"'))
    code, out = cli("plan", *arguments, "--consent", chosen)
    assert code == 0
    assert re.search(r"agrees; its filter holds [1-9]\d* such releases", out)
    code, out = cli("plan", *arguments, "--json")
    assert (code, json.loads(out)["epsilon"][-1]["rounds"]) == (0, 2)
