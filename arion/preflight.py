"""Before a run spends its budget: that it learns, and that what it makes can be read and run.

On tokens drawn from a fixed seed, on a copy of the base: nobody's text, and nothing is kept.

Shapes: D coordinates of the trainable vector.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arion.run_federation import write_merged_model
from client.preflight import PreflightError, check_private_gradients
from client.training import LocalTrainer, UnitRows
from models.decoder import Decoder
from models.folders import open_model
from models.generate import Settings, generate
from models.language_model import LanguageModel
from models.optimiser import OptimiserState, adam_step
from models.recipe import prepare
from models.tokenizer import Row
from models.training_settings import OptimiserSettings, Recipe
from models.vector import read_vector, write_vector
from privacy.dp.plan import PrivateStep

_UNITS, _POSITIONS, _STEPS, _NEW_TOKENS = 4, 32, 6, 4
# Logits of a model that was merged, written and read again, relative to the largest.
_SAME = 1e-2


def check_liveness(base: Path, recipe: Recipe, optimiser: OptimiserSettings, rounds: int) -> None:
    """Train a copy of the base for a few steps, write it, read it, and let it speak.

    Args:
        base: model folder. recipe, optimiser, rounds: the run's.

    Raises:
        PreflightError: gradients are not each unit's own, the loss does not fall, or the written
            model is another. ClippingError: a trained weight escapes the engine.

    """
    model, tokenizer = open_model(base)
    prepare(model, recipe)
    check_private_gradients(model, recipe)
    rows = _rows(model, recipe)
    before = _loss(model, rows)
    state = _trained(model, rows, recipe, optimiser, rounds)
    after = _loss(model, rows)
    if not after < before:
        raise PreflightError(
            f"Expected the loss of a few drawn sequences to fall in {_STEPS} steps of rate "
            f"{optimiser.learning_rate:g}, got {before:.3f} before and {after:.3f} after. Lower "
            "training.learning_rate."
        )
    with tempfile.TemporaryDirectory() as folder:
        again = write_merged_model(base, recipe, state.vector_D, Path(folder) / "model")
    _check_same(model, again, rows)
    if isinstance(again, Decoder):
        generate(again, tokenizer, [""], Settings(_NEW_TOKENS))


def _rows(model: LanguageModel, recipe: Recipe) -> tuple[Row, ...]:
    length = min(_POSITIONS, recipe.sequence_length)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(model.vocab_size, (_UNITS, length + 1), generator=generator)
    return tuple(Row(tuple(ids), 0) for ids in drawn.tolist())


def _trained(
    model: LanguageModel,
    rows: tuple[Row, ...],
    recipe: Recipe,
    optimiser: OptimiserSettings,
    rounds: int,
) -> OptimiserState:
    units = UnitRows(tuple((row,) for row in rows))
    trainer = LocalTrainer(model, units, recipe, pad_draws=False)
    step = PrivateStep(
        clipping_norm=1.0, noise_multiplier=0.0, sampling_probability=1.0, expected_batch=_UNITS,
        honest_survivors=1, releases=_STEPS, unit="record", ring_bits=32,
    )  # fmt: skip
    state = OptimiserState.start(read_vector(model))
    for _ in range(_STEPS):
        sum_D = torch.from_numpy(trainer.clipped_sum(np.arange(_UNITS), step))
        if not bool(torch.isfinite(sum_D).all()):
            raise PreflightError(
                f"Expected finite gradients at rate {optimiser.learning_rate:g}, got others. Lower "
                "training.learning_rate."
            )
        state = adam_step(state, sum_D, step.expected_batch, optimiser, rounds)
        write_vector(model, state.vector_D)
    return state


@torch.no_grad()
def _loss(model: LanguageModel, rows: tuple[Row, ...]) -> float:
    token = _tokens(rows)
    loss = model.loss(token[:, :-1], token[:, 1:])
    return float(loss.total_B.sum() / loss.tokens_B.sum())


@torch.no_grad()
def _check_same(model: LanguageModel, again: LanguageModel, rows: tuple[Row, ...]) -> None:
    token = _tokens(rows)[:, :-1]
    expected, found = model(token).float(), again(token).float()
    if not bool((found - expected).abs().max() <= _SAME * expected.abs().max()):
        raise PreflightError(
            "Expected the written model to compute what was trained, got other logits from its "
            "folder. Report this: the run's model would be lost."
        )


def _tokens(rows: tuple[Row, ...]) -> Tensor:
    return torch.tensor([row.ids for row in rows])
