"""Runs whose secrets also rest on ML-KEM-768: the same sums, and the same after a crash."""

import json
import tomllib

import pytest

from arion.toml_file import write_toml
from client.config import CONSENT_FILE
from coordinator.store import RunStore
from tests.federation.test_crashes import NAMES, POINTS, check, crash, lose_keys, restarts
from tests.small_federation import Make, SmallFederation, digest_of


@pytest.fixture
def hybrid(make_federation: Make) -> SmallFederation:
    """The honest federation; all consents ask for hybrid secrets."""
    federation = make_federation()
    for home in federation.homes.nodes.values():
        path = home / CONSENT_FILE
        write_toml(path, {**tomllib.loads(path.read_text()), "post_quantum": True})
    return federation


def test_the_sums_are_the_same(hybrid: SmallFederation, undisturbed: str) -> None:
    assert digest_of(hybrid.run()) == undisturbed
    check(hybrid)
    store = RunStore(hybrid.homes.coordinator)
    epoch = store.load_epoch()
    store.close()
    assert epoch is not None
    assert all(json.loads(signed.payload)["kem_key"] for signed in epoch.bundles.values())


@pytest.mark.parametrize(
    "point",
    ["plan saved", "node's upload sealed", "uploads collected", "node's set signed", "sum opened"],
)
def test_a_crash_costs_no_attempt(hybrid: SmallFederation, undisturbed: str, point: str) -> None:
    crash(hybrid, *POINTS[point], "after")
    assert digest_of(hybrid.run()) == undisturbed
    assert hybrid.bodies("coordinator", "round-aborted") == []
    check(hybrid)


@pytest.mark.parametrize("at", ["roster", "reveals"])
def test_a_node_starts_again_while_an_epoch_is_opened(
    hybrid: SmallFederation, undisturbed: str, at: str
) -> None:
    assert digest_of(hybrid.run(restarts(hybrid, at, times=1, keys="kept"))) == undisturbed
    check(hybrid)


def test_secrets_that_are_lost_cost_one(hybrid: SmallFederation) -> None:
    crash(hybrid, *POINTS["uploads collected"], "after")
    lose_keys(hybrid, NAMES[0])
    hybrid.run()
    (aborted,) = hybrid.bodies("coordinator", "round-aborted")
    assert aborted["code"] == "epoch-lost"
    check(hybrid, attempts=4)
