"""An institution's order for experts of its own, turned into a job that its gate can decide on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from client.compute import check_default
from client.config import NodeConfig, NodeError
from client.entropy import Entropy
from client.experts_training import ExpertsTraining, Watch, bank_layout, silent
from client.module_outbox import SealedModule
from client.node import Node
from client.training import LocalTrainer, unit_rows
from client.training_records import training_records
from models.checkpoint import load_model, model_digest
from models.decoder import Decoder
from models.faults import first_fault
from models.owned import public_inputs
from models.pretrain import token_stream
from models.tokenizer import Tokenizer
from models.training_settings import OptimiserSettings, Recipe
from privacy.consent import Consent
from privacy.dp.local_plan import calibrate_local_plan
from privacy.experts_job import ExpertsJob
from privacy.ledger.entries import DELTA_UNITS
from privacy.rounds import run_delta

LOCAL = "local"
"""Runtime of a command that the institution itself starts; nothing is carried to or from it."""

_PUBLIC_TOKENS = 4096

Statement = Annotated[str, Field(min_length=1, max_length=4000)]


class ExpertsOrder(BaseModel):
    """What an institution asks for; the node's own files say on which data and model.

    Attributes:
        epsilon: bound on the whole module's epsilon; the noise is calibrated to it.
        delta: of the claim; None takes one run's share of the consent's.
        steps: T optimiser steps.
        sampling_probability: q; a constant that must not be computed from the number of units.
        expected_batch: B, the divisor of every sum; likewise.
        clipping_norm, embedding_clipping_norm: C of a unit's gradient and of its embedding.
        sources, train_rows, gain, margin, sequence_length, sequences_per_unit, optimiser, run,
        data, licence: see `privacy.experts_job.ExpertsJob`.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epsilon: float = Field(gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)
    steps: int = Field(ge=1)
    sampling_probability: float = Field(gt=0, le=1)
    expected_batch: float = Field(gt=0)
    clipping_norm: float = Field(default=1.0, gt=0)
    embedding_clipping_norm: float = Field(default=1.0, gt=0)
    sources: tuple[int, ...] = (0,)
    train_rows: bool = False
    gain: float = Field(default=1.0, gt=0)
    margin: float = 1.0
    sequence_length: int = Field(default=128, ge=2)
    sequences_per_unit: int = Field(default=1, ge=1, le=64)
    optimiser: OptimiserSettings = OptimiserSettings(bias_correction=True)
    run: str = "owned-experts"
    data: Statement
    licence: Statement


def parse_order(**values: Any) -> ExpertsOrder:
    """Check an order's values; raise NodeError that names the first bad one."""
    try:
        return ExpertsOrder(**values)
    except ValidationError as error:
        raise NodeError(
            f"Expected a possible {first_fault(error, 'order')}. Correct it."
        ) from error


def train_experts(
    home: Path,
    order: ExpertsOrder,
    public: Sequence[str],
    *,
    runtime: str = LOCAL,
    watch: Watch = silent,
) -> SealedModule:
    """Train experts of a node's own under its consent and budget, and seal them as a module.

    Args:
        home: of the node; its node.toml names data and base model.
        order: what is asked for.
        public: public documents that router rows are calibrated on.
        runtime: "simulate" in a simulation; seeded noise is refused elsewhere.
        watch: see `client.experts_training.ExpertsTraining`.

    Raises:
        PlanRefused: the consent or what is left of the budget does not allow it.
        NodeError, DataError, CheckpointError, OwnedError, AccountantError: what cannot be used.

    """
    node = Node(home, runtime)
    try:
        check_default(node.config)
        base, tokenizer = load_model(node.config.base_model)
        token_BT = public_tokens(public, tokenizer, order.sequence_length)
        job = make_job(order, node.config, node.consent, base, token_BT)

        def open_training(workshop: Path) -> ExpertsTraining:
            config = node.config
            recipe = Recipe(
                sequence_length=job.sequence_length, sequences_per_unit=job.sequences_per_unit
            )
            trainer = LocalTrainer(
                base,
                unit_rows(training_records(config), tokenizer, recipe),
                recipe,
                chunk_sequences=config.chunk_sequences,
                two_passes=config.two_passes,
                pad_draws=config.pad_draws,
            )
            public_text = public_inputs(base, token_BT)
            entropy = Entropy(config.seed if job.seeded else None)
            return ExpertsTraining(job, trainer, public_text, workshop, entropy, watch=watch)

        return node.release_experts(job, open_training)
    finally:
        node.close()


def make_job(
    order: ExpertsOrder, config: NodeConfig, consent: Consent, base: Decoder, token_BT: Tensor
) -> ExpertsJob:
    """Calibrate the noise and name everything that the training depends on but the data.

    The same order at the same node gives the same job, so a command that was cut short goes on when
    it is given again.

    Raises:
        NodeError: sequences longer than the model's positions.
        AccountantError, PlanError, OwnedError: an order that cannot be met.

    """
    if order.sequence_length > base.max_positions:
        raise NodeError(
            f"Expected sequence_length <= {base.max_positions} positions of the model, got "
            f"{order.sequence_length}. Lower it."
        )
    wanted = run_delta(consent) if order.delta is None else order.delta
    delta_1e15 = round(wanted * DELTA_UNITS)
    layout = bank_layout(base.config, order.sources, train_rows=order.train_rows)
    plan = calibrate_local_plan(
        order.epsilon,
        delta_1e15 / DELTA_UNITS,
        steps=order.steps,
        sampling_probability=order.sampling_probability,
        expected_batch=order.expected_batch,
        unit=consent.unit,
        vector_length=sum(size for _, size in layout),
        embedding_length=base.config.layers * base.config.hidden_size,
        clipping_norm=order.clipping_norm,
        embedding_clipping_norm=order.embedding_clipping_norm,
    )
    given = set(ExpertsOrder.model_fields) & set(ExpertsJob.model_fields)
    return ExpertsJob(
        **{name: getattr(order, name) for name in given},
        owner=config.name,
        base_digest=model_digest(base),
        public_digest=hashlib.sha256(token_BT.numpy().tobytes()).hexdigest(),
        trainable=layout,
        plan=plan,
        delta_1e15=delta_1e15,
        seeded=config.seed is not None,
    )


def public_tokens(documents: Sequence[str], tokenizer: Tokenizer, length: int) -> Tensor:
    """Lay public text out as rows of tokens, int64 [B, length]: a few thousand tokens of it.

    Raises:
        NodeError: fewer tokens than one row.

    """
    stream = token_stream(tokenizer, documents)
    rows = min(len(stream), max(_PUBLIC_TOKENS, length)) // length
    if rows == 0:
        raise NodeError(
            f"Expected at least {length} tokens of public text, got {len(stream)}. Give more of "
            "it, or lower sequence_length."
        )
    return stream[: rows * length].view(rows, length).long()
