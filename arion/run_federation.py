"""Drives the ServerApp over the in-process grid: one federated run, resumable."""

from pathlib import Path

import torch

import client.app
import coordinator.app
from arion.federation import Homes
from arion.local_grid import DropOuts, LocalGrid, run_server_app
from coordinator.attempts import Phase, read_attempts
from coordinator.outcome import Observer, observing
from coordinator.store import RunStore
from models.folders import open_model, write_model
from models.language_model import LanguageModel
from models.lora import merge_lora
from models.recipe import prepare
from models.training_settings import Recipe
from models.vector import write_vector


def run_federation(homes: Homes, observer: Observer, *, drop: float = 0.0, seed: int = 0) -> None:
    """Carry a run to its end from wherever it stands.

    Args:
        homes: of the federation.
        observer: called after every attempt.
        drop: chance that a node drops out of a round, half before and half after its upload.
        seed: of the drop-outs.

    """
    grid = LocalGrid(client.app.app, homes.nodes, DropOuts(drop, seed))
    try:
        with observing(observer):
            run_server_app(coordinator.app.app, grid, homes.coordinator)
    finally:
        client.app.close_nodes()


def rounds_made(home: Path) -> int:
    """How many rounds of the run in a home were recorded."""
    return sum(attempt.phase == Phase.RECORDED for attempt in read_attempts(home))


def final_vector(home: Path, rounds: int | None = None) -> torch.Tensor:
    """The trainable parameters that the run in a home hands out, fp32 [D].

    Args:
        home: of a run that is over.
        rounds: that were recorded; None looks.

    """
    store = RunStore(home)
    try:
        state = store.load_state(rounds_made(home) if rounds is None else rounds)
    finally:
        store.close()
    assert state is not None, "the run made so many rounds"
    return state.average_D


def write_merged_model(
    base: Path, recipe: Recipe, vector_D: torch.Tensor, folder: Path
) -> LanguageModel:
    """Write the run's model as a plain model folder, adapters merged; return what it holds."""
    model, tokenizer = open_model(base)
    prepare(model, recipe)
    write_vector(model, vector_D)
    merge_lora(model)
    write_model(model, tokenizer, folder)
    return open_model(folder)[0]
