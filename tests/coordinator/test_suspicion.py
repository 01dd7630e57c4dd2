"""Whom spoilt groups point at: the guilty in few rounds, hardly ever an innocent."""

import numpy as np
import pytest

from coordinator.suspicion import suspects

NAMES = [f"n{place}" for place in range(12)]


def played(guilty: set[str], rounds: int, seed: int, chance: float = 1.0) -> list[tuple]:
    """Groups of four drawn at random; a guilty member spoils its group with a given chance."""
    generator = np.random.default_rng(seed)
    history = []
    for _ in range(rounds):
        dealt = generator.permutation(NAMES)
        groups = [set(dealt[place::3].tolist()) for place in range(3)]
        active = {name for name in guilty if generator.random() < chance}
        spoilt = set().union(*(group for group in groups if group & active))
        history.append((set(NAMES), spoilt))
    return history


def test_the_guilty_member_is_named_alone() -> None:
    for seed in range(20):
        found = suspects(played({"n4"}, 12, seed))
        assert found[0].name == "n4"
        assert found[0].spoilt == found[0].attempts == 12
        assert found[0].p_value == pytest.approx((1 / 3) ** 12)
        assert len(found) == 1


def test_two_that_spoil_now_and_then() -> None:
    found = suspects(played({"n1", "n9"}, 120, 3, chance=0.5))
    assert {suspect.name for suspect in found} == {"n1", "n9"}


def test_accidents_accuse_nobody() -> None:
    """Groups that are spoilt by nobody in particular: fewer than one run in a hundred accuses."""
    accused = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        history = []
        for _ in range(40):
            dealt = generator.permutation(NAMES)
            groups = [set(dealt[place::3].tolist()) for place in range(3)]
            spoilt = set().union(*(group for group in groups if generator.random() < 0.2))
            history.append((set(NAMES), spoilt))
        accused += bool(suspects(history))
    assert accused <= 9  # expected below 3


def test_one_group_for_all_tells_nothing() -> None:
    everyone = set(NAMES)
    assert suspects([(everyone, everyone), (everyone, set()), (everyone, everyone)]) == []
    assert suspects([]) == []
