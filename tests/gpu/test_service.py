"""Nodes that compute on a GPU, as agents of a running service. Skipped where torch sees none."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arion.toml_file import write_toml
from client.config import NODE_FILE
from tests.service.conftest import (  # noqa: F401  (fixtures)
    ground,
    institutions,
    make_federation,
    service,
    service_home,
)
from tests.service.institutions import EXACT, Institutions, Make
from tests.small_federation import NAMES, SmallFederation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def compute(home: Path, **values: Any) -> None:
    """Say in a node's node.toml where and in which precision it computes."""
    path = home / NODE_FILE
    write_toml(path, tomllib.loads(path.read_text()) | values)


def on_gpus(ours: Institutions, names: tuple[str, ...], precision: str) -> None:
    for name in names:
        home = ours.federation.homes.nodes[name]
        compute(home, device="cuda", precision=precision, pad_draws=True)
    ours.start(*NAMES)


def test_gpus_and_processors_of_one_federation_make_the_processors_sum(
    institutions: Make,  # noqa: F811
    make_federation: Callable[..., SmallFederation],  # noqa: F811
) -> None:
    """Without noise, and with every unit drawn, nothing but the order of sums differs."""
    ours = institutions(EXACT, rounds=1)
    on_gpus(ours, NAMES[:2], "fp32")
    found_D = ours.run().first_D  # the sum, scaled
    ours.stop()
    ours.verified()
    expected_D = make_federation(EXACT, seed=None, rounds=1).run().first_D
    largest = float(expected_D.abs().max())
    assert largest > 0
    torch.testing.assert_close(found_D, expected_D, rtol=1e-3, atol=1e-4 * largest)


def test_a_private_run_in_bf16_is_accounted_for(institutions: Make) -> None:  # noqa: F811
    ours = institutions(rounds=2)
    on_gpus(ours, NAMES, "bf16")
    state = ours.run()
    ours.stop()
    assert torch.isfinite(state.vector_D).all()
    reports = ours.verified()
    for name in NAMES:
        cost = reports[name].epsilon_micro
        assert cost is not None
        assert cost > 0
        assert len(ours.bodies(name, "release-debited")) == 2
