"""Nodes of a simulation take turns at one model; nodes elsewhere have their own."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import client.node
import client.seats
from client.config import CONSENT_FILE, load_node_config
from client.seats import Seat, Seats
from models.checkpoint import model_digest
from models.training_settings import Recipe
from privacy.canonical import canonical_bytes
from privacy.consent import load_consent
from tests.small_federation import RECIPE, SmallFederation, digest_of


def seats_of(federation: SmallFederation, name: str, **changes: Any) -> Seats:
    home = federation.homes.nodes[name]
    config = load_node_config(home).model_copy(update=changes)
    return Seats(config, load_consent(home / CONSENT_FILE), shares=True)


def sit(seats: Seats, recipe: Recipe = RECIPE) -> Seat:
    return seats.of(canonical_bytes(recipe.model_dump(mode="json")), None)


def test_nodes_that_share_hold_one_model_and_their_own_units(federation: SmallFederation) -> None:
    both = [seats_of(federation, name) for name in ("north", "south")]
    north, south = map(sit, both)
    assert north.model is south.model
    assert north.trainer.units.rows != south.trainer.units.rows
    alone = Seats(both[0]._config, both[0]._consent)
    assert sit(alone).model is not north.model


def test_what_decides_a_model_tells_shared_ones_apart(
    federation: SmallFederation, tmp_path: Path
) -> None:
    one = sit(seats_of(federation, "north"))
    other = RECIPE.model_copy(update={"sequence_length": 16})
    base = shutil.copytree(federation.settings.base_model, tmp_path / "base")
    held = [seats_of(federation, "south", **c) for c in ({}, {"base_model": Path(base)})]
    assert sit(held[0], other).model is not one.model
    assert sit(held[1]).model is not one.model
    bf16 = seats_of(federation, "south", precision="bf16", pad_draws=True)
    assert sit(bf16).model.compute_dtype != one.model.compute_dtype  # type: ignore[attr-defined]


def test_the_last_node_that_leaves_takes_the_model_along(federation: SmallFederation) -> None:
    both = [seats_of(federation, name) for name in ("north", "south")]
    first = model_digest(sit(both[0]).model)
    assert model_digest(sit(both[1]).model) == first
    for left, seats in zip((1, 0), both, strict=True):
        seats.close()
        gc.collect()
        assert len(client.seats._SHARED) == left


def test_a_run_comes_to_the_same_bytes_with_and_without(
    make_federation: Callable[..., SmallFederation], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, apart = make_federation(seed=3), make_federation(seed=3)
    together = digest_of(shared.run())
    monkeypatch.setattr(client.node, "SIMULATE", "nowhere")
    opened: list[object] = []
    inner = client.seats._open_model
    monkeypatch.setattr(client.seats, "_open_model", lambda *a: opened.append(a) or inner(*a))
    assert digest_of(apart.run()) == together
    assert len(opened) == len(apart.homes.names)
