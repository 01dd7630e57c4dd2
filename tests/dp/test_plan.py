"""The step binds its parts; DP events survive JSON exactly and fail closed."""

import json
import math
import sys

import pytest
from dp_accounting.dp_event import (
    ComposedDpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from hypothesis import given
from hypothesis import strategies as st

from privacy.dp.events import event_from_json, event_json
from privacy.dp.plan import PlanError, PrivateStep


def test_noise_of_the_honest_survivors_sums_to_the_event(make_step):
    step = make_step(honest_survivors=5)
    total = math.sqrt(5) * step.node_noise_std
    assert total == pytest.approx(step.noise_multiplier * 1.001 * step.clipping_norm)
    assert step.event() == PoissonSampledDpEvent(0.01, GaussianDpEvent(0.8))
    assert step.schedule_event() == SelfComposedDpEvent(step.event(), 1000)
    assert step.lattice_scale * step.noise_in_lattice_units == pytest.approx(step.node_noise_std)


def test_all_others_colluding_leaves_one_share_of_the_noise(make_step):
    step = make_step(honest_survivors=4)
    assert step.event_if_all_others_collude().event.noise_multiplier == pytest.approx(0.8 / 2)


def test_json_round_trip_is_exact(make_step):
    step = make_step(noise_multiplier=0.1 + 0.2)
    again = PrivateStep.model_validate(json.loads(json.dumps(step.model_dump(mode="json"))))
    assert again == step
    assert event_from_json(json.loads(json.dumps(again.event_json()))) == step.event()


leaves = st.one_of(
    st.just(NoOpDpEvent()),
    st.just(NonPrivateDpEvent()),
    st.builds(GaussianDpEvent, st.floats(1e-3, 1e3)),
    st.builds(
        PoissonSampledDpEvent,
        st.floats(1e-6, 1),
        st.builds(GaussianDpEvent, st.floats(1e-3, 1e3)),
    ),
)


def as_json(value):
    if hasattr(value, "_fields"):
        return {name: as_json(getattr(value, name)) for name in value._fields}
    return [as_json(each) for each in value] if isinstance(value, list) else value


@given(st.lists(st.builds(SelfComposedDpEvent, leaves, st.integers(1, 10**6)), max_size=4))
def test_every_event_returns_from_json(events):
    event = ComposedDpEvent(events)
    assert event_from_json(json.loads(json.dumps(event_json(event)))) == event
    assert event_json(event) == as_json(event.to_named_tuple())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_multiplier": -1.0}, "greater than or equal to 0"),
        ({"noise_multiplier": math.nan}, "finite"),
        ({"clipping_norm": math.inf}, "finite"),
        ({"sampling_probability": 1.5}, "less than or equal to 1"),
        ({"honest_survivors": 0}, "greater than or equal to 1"),
        ({"honest_survivors": 2.5}, "valid integer"),
        (
            {"noise_in_lattice_units": 2.9},
            "from 3 to 1024, got 2.9. Below, a sum",
        ),
        ({"noise_in_lattice_units": 1025.0}, "Keep the default 4"),
        ({"noise_multiplier": 0.0}, "needs ring_bits = 32"),
        ({"clipping_norm": 1e-9, "noise_multiplier": 1e-320}, "lattice scale"),
        ({"ring_bits": 8, "noise_in_lattice_units": 8.0}, "10 standard deviations of 3 members"),
        ({"ring_bits": 10}, "ring_bits"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_bad_steps_are_refused(make_step, change, message):
    with pytest.raises(ValueError, match=message):
        make_step(**change)


def test_a_step_without_noise_says_so(make_step):
    step = make_step(noise_multiplier=0.0, ring_bits=32)
    assert not step.is_private
    assert step.event() == NonPrivateDpEvent()
    assert step.event_if_all_others_collude() == NonPrivateDpEvent()
    assert step.lattice_scale == 2.0**-18


GAUSSIAN = {
    "module_name": "dp_accounting.dp_event",
    "class_name": "GaussianDpEvent",
    "noise_multiplier": 1.0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"module_name": "antigravity"},
        {"class_name": "LaplaceDpEvent"},
        {"noise_multiplier": "1"},
        {"noise_multiplier": True},
        {"noise_multiplier": 0},
        {"noise_multiplier": math.inf},
        {"extra": 1},
    ],
)
def test_foreign_events_are_refused_without_importing_anything(change):
    with pytest.raises(PlanError):
        event_from_json(GAUSSIAN | change)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("event", [LaplaceDpEvent(1.0), GaussianDpEvent(-1.0)])
def test_unknown_events_are_never_written(event):
    with pytest.raises(PlanError):
        event_json(event)
