"""Epsilon agrees with the shared tables, moves the right way, and fails closed."""

import json
import math

import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.dp_event import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.dp.accountant import (
    AccountantError,
    LossOverflowError,
    calibrate_noise_multiplier,
    count_releases,
    epsilon,
    epsilon_after,
    epsilon_if_all_others_collude,
    epsilon_microunits,
)
from privacy.dp.events import event_json
from privacy.dp.lattice_bounds import lattice_slack
from privacy.dp.loss_distribution import pld_epsilon


def schedule(noise_multiplier, rate, releases):
    event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier))
    return SelfComposedDpEvent(event, releases)


def table(shared_dir):
    rows = json.loads((shared_dir / "vectors/dp/epsilon_table.json").read_text())["rows"]
    return [row for row in rows if row["epsilon_pld"] is not None]


def check_row(row):
    """The table's own discretisation gives its figure; ours is hardly larger, nor far below."""
    event = schedule(row["noise_multiplier"], row["sampling_probability"], row["steps"])
    interval = 1e-4 if row["steps"] <= 100 else 1e-3
    same = pld_epsilon(json.dumps(event_json(event), sort_keys=True), row["delta"], interval)
    # Beyond 500 the memory limit makes our grid coarser than the table's.
    rel = 1e-6 if row["epsilon_pld"] < 500 else 1e-3
    assert same == pytest.approx(row["epsilon_pld"], rel=rel, abs=2 * interval)
    ours = epsilon(event, row["delta"])
    assert ours <= row["epsilon_rdp"]
    assert ours <= row["epsilon_pld"] * (1 + max(1e-4, rel)) + 1e-9
    assert ours >= row["epsilon_pld"] * 0.98 - 0.05


def test_a_spread_of_the_shared_table(shared_dir):
    rows = [row for row in table(shared_dir) if row["epsilon_pld"] < 30][::23]
    assert len(rows) >= 9
    for row in rows:
        check_row(row)


@pytest.mark.slow
def test_the_whole_shared_table(shared_dir):
    rows = table(shared_dir)
    assert len(rows) == 342
    for row in rows:
        check_row(row)


def test_quoted_figures_of_other_libraries(shared_dir):
    cases = json.loads((shared_dir / "vectors/dp/quoted_expected.json").read_text())
    for case in cases["opacus"]["cases"]:
        if case.get("accountant") in {"RDP", "PRV"}:
            ours = epsilon(
                schedule(case["noise_multiplier"], case["sample_rate"], case["steps"]),
                case["delta"],
            )
            tight = case["accountant"] == "PRV"
            assert ours == pytest.approx(case["epsilon"], rel=0.005) if tight else ours < 7.33
    gaussian = next(c for c in cases["dp_accounting"]["cases"] if c.get("epsilon") == 1.0)
    ours = epsilon(GaussianDpEvent(gaussian["noise_multiplier"]), gaussian["delta"])
    assert 0.9 < ours <= gaussian["epsilon"]


def test_quoted_calibrations(shared_dir):
    cases = json.loads((shared_dir / "vectors/dp/quoted_expected.json").read_text())
    case = next(c for c in cases["opacus"]["cases"] if c.get("calibrate") == "prv" and "steps" in c)
    ours = calibrate_noise_multiplier(
        case["target_epsilon"], case["delta"], case["sample_rate"], case["steps"]
    )
    assert ours == pytest.approx(case["noise_multiplier"], rel=0.005)


def test_the_design_example():
    assert epsilon(schedule(0.8, 0.01, 1000), 1e-5) == pytest.approx(3.141, abs=1e-3)


@pytest.mark.parametrize(
    "event",
    [
        SelfComposedDpEvent(PoissonSampledDpEvent(0.01, GaussianDpEvent(0.8)), 100),
        GaussianDpEvent(2.0),
        ComposedDpEvent(
            [
                SelfComposedDpEvent(GaussianDpEvent(5.0), 7),
                SelfComposedDpEvent(
                    ComposedDpEvent(
                        [PoissonSampledDpEvent(0.05, GaussianDpEvent(1.2)), NoOpDpEvent()]
                    ),
                    30,
                ),
                GaussianDpEvent(3.0),
            ]
        ),
    ],
    ids=["schedule", "everyone", "nested"],
)
def test_losses_compose_as_the_librarys_accountant_composes_them(event):
    expected = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4).compose(event)
    assert epsilon(event, 1e-5) == expected.get_epsilon(1e-5)


@pytest.mark.parametrize("releases", [1, 40, 1000])
def test_who_is_surely_drawn_costs_what_is_not_sampled(releases):
    """At q = 1 Gaussians compose exactly; the library's PLD rounds up once per release."""
    noise = 3 * math.sqrt(releases)
    gaussian = SelfComposedDpEvent(GaussianDpEvent(noise), releases)
    library = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    rounded = library.compose(schedule(noise, 1.0, releases)).get_epsilon(1e-5)
    assert epsilon(schedule(noise, 1.0, releases), 1e-5) == epsilon(gaussian, 1e-5) <= rounded


def test_no_noise_costs_infinity_and_no_release_nothing():
    assert epsilon(NonPrivateDpEvent(), 1e-5) == math.inf
    assert epsilon(ComposedDpEvent([GaussianDpEvent(9.0), NonPrivateDpEvent()]), 1e-5) == math.inf
    assert epsilon(NoOpDpEvent(), 1e-5, vector_length=10**6) == 0
    assert epsilon(ComposedDpEvent([]), 1e-5) == 0


@pytest.mark.parametrize(
    "event",
    [
        GaussianDpEvent(math.nan),
        GaussianDpEvent(-1.0),
        GaussianDpEvent(0.0),
        LaplaceDpEvent(1.0),
        PoissonSampledDpEvent(0.1, LaplaceDpEvent(1.0)),
        PoissonSampledDpEvent(0.1, NoOpDpEvent()),
        PoissonSampledDpEvent(1.1, GaussianDpEvent(1.0)),
        PoissonSampledDpEvent(math.nan, GaussianDpEvent(1.0)),
        SelfComposedDpEvent(GaussianDpEvent(1.0), -3),
        DpEvent(),
    ],
)
def test_events_that_cannot_be_bounded_raise(event):
    with pytest.raises(ValueError, match="Expected"):
        epsilon(event, 1e-5)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, math.nan, 1e-12])
def test_deltas_out_of_range_raise(delta):
    with pytest.raises(AccountantError, match="delta"):
        epsilon(GaussianDpEvent(1.0), delta)


@pytest.mark.parametrize(
    "event", [schedule(0.001, 0.01, 100), schedule(50.0, 1e-4, 10**7), GaussianDpEvent(1e-9)]
)
def test_too_little_noise_is_an_error_before_it_is_a_full_memory(event):
    with pytest.raises(LossOverflowError, match="Expected"):
        epsilon(event, 1e-5)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    noise_multiplier=st.floats(0.8, 4),
    rate=st.floats(0.001, 0.2),
    releases=st.integers(1, 200),
    factor=st.floats(1.05, 3),
)
def test_epsilon_is_monotone(noise_multiplier, rate, releases, factor):
    base = epsilon(schedule(noise_multiplier, rate, releases), 1e-5)
    # Each figure is a discretised upper bound, so order holds to the grid's error.
    room = 1e-4 + 1e-3 * base
    assert epsilon(schedule(noise_multiplier * factor, rate, releases), 1e-5) <= base + room
    assert epsilon(schedule(noise_multiplier, rate / factor, releases), 1e-5) <= base + room
    assert epsilon(schedule(noise_multiplier, rate, 2 * releases), 1e-5) >= base - room
    assert epsilon(schedule(noise_multiplier, rate, releases), 1e-7) >= base - room


def test_composition_costs_more_than_its_parts_and_less_than_their_sum():
    first, second = schedule(1.0, 0.01, 200), schedule(1.5, 0.05, 100)
    both = epsilon(ComposedDpEvent([first, second]), 1e-5)
    parts = [epsilon(first, 1e-5), epsilon(second, 1e-5)]
    assert max(parts) < both < sum(parts)
    assert count_releases(ComposedDpEvent([first, second, NoOpDpEvent()])) == 300


def test_rounding_and_precision_are_charged():
    event = schedule(1.0, 0.01, 100)
    bare = epsilon(event, 1e-5)
    charged = epsilon(event, 1e-5, vector_length=10**7, contributors=8)
    kappa = lattice_slack(10**7, 100, 8, 4.0)
    assert bare + 2 * kappa <= charged < bare + 2.1 * kappa + 1e-3
    with pytest.raises(ValueError, match="noise_in_lattice_units"):
        epsilon(event, 1e-5, vector_length=10, noise_in_lattice_units=2.0)


def test_delta_that_cannot_absorb_the_tail_gives_infinity():
    assert epsilon(schedule(0.2, 1.0, 20), 1e-5) > 200
    assert epsilon(schedule(0.2, 1.0, 20), 1e-5, vector_length=1000) == math.inf


def test_rounds_of_a_schedule(make_step):
    step = make_step(releases=100)
    shown = [epsilon_after(step, rounds, 1e-5) for rounds in (0, 1, 50, 100)]
    assert shown == sorted(shown)
    assert shown[0] == 0
    assert shown[-1] == epsilon(step.schedule_event(), 1e-5)
    for rounds in (-1, 101):
        with pytest.raises(AccountantError, match="rounds"):
            epsilon_after(step, rounds, 1e-5)


def test_collusion_costs_what_one_share_of_the_noise_protects(make_step):
    step = make_step(honest_survivors=4, noise_multiplier=2.0, releases=50)
    assert epsilon_if_all_others_collude(step, 1e-5) == epsilon(schedule(1.0, 0.01, 50), 1e-5)
    alone = make_step(honest_survivors=1, releases=50)
    assert epsilon_if_all_others_collude(alone, 1e-5) == epsilon(alone.schedule_event(), 1e-5)


@pytest.mark.parametrize(
    ("target", "rate", "releases"), [(1.0, 0.01, 300), (8.0, 0.2, 50), (0.5, 1.0, 1)]
)
def test_calibration_is_safe_and_tight(target, rate, releases):
    options = {"vector_length": 50_000, "contributors": 4}
    found = calibrate_noise_multiplier(target, 1e-6, rate, releases, **options)
    assert epsilon(schedule(found, rate, releases), 1e-6, **options) <= target
    assert epsilon(schedule(found * 0.99, rate, releases), 1e-6, **options) > target


def test_unreachable_targets_are_refused():
    with pytest.raises(AccountantError, match="cost of rounding"):
        calibrate_noise_multiplier(1e-9, 1e-5, 0.01, 10, vector_length=10**9, contributors=50)
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(AccountantError, match="epsilon"):
            calibrate_noise_multiplier(target, 1e-5, 0.01, 10)


@given(st.floats(0, 1e6))
def test_microunits_round_up(value):
    units = epsilon_microunits(value)
    assert units * 1e-6 >= value * (1 - 1e-15)
    assert units - 1 < value * 1e6 * (1 + 1e-12) + 1e-9
    assert isinstance(units, int)


def test_microunits_of_exact_and_bad_values():
    assert [epsilon_microunits(v) for v in (0.0, 0.5, 1e-30, 1.0)] == [0, 500_000, 1, 1_000_000]
    for value in (-1e-9, math.inf, math.nan):
        with pytest.raises(AccountantError, match="finite epsilon"):
            epsilon_microunits(value)


def test_a_public_number_of_units_costs_more():
    """Replace one, which holds where N is known, against add or remove one (docs/privacy.md, 2)."""
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    accountant.compose(schedule(0.8, 0.01, 1000))
    assert accountant.get_epsilon(1e-5) == pytest.approx(4.23, abs=0.01)
    assert epsilon(schedule(0.8, 0.01, 1000), 1e-5) < 3.15
