"""DP-SGD on a bank of owned experts at one node; a crash costs steps, never privacy.

The durable state is what the noised sums so far came to. A step that a crash interrupts, or whose
state was lost with it, is drawn anew in full: sample and noise. The first drawing left nothing that
a later state depends on, and only the last state leaves the node.

Shapes: L layers, N owned experts per layer, D hidden (rows) or coordinates of the bank (vector).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load, save
from torch import Tensor

from client.entropy import Entropy
from client.training import LocalTrainer
from models.checkpoint import model_digest
from models.config import ModelConfig
from models.decoder import Decoder
from models.optimiser import OptimiserState, adam_step
from models.owned import PublicInputs, branch, owned_tensors, router_rows, sequence_embeddings
from models.tokenizer import stack_rows
from models.vector import read_vector, trainable_layout, write_vector
from privacy.dp.domain_embedding import release_embedding
from privacy.dp.lattice import noised_sum, release_variance
from privacy.dp.sampling import PoissonSampler
from privacy.experts_job import ExpertsJob
from privacy.ledger.files import replace_durably, sync_directory
from privacy.round_plan import PlanCode, PlanRefused

ROWS_FILE = "rows.safetensors"
STATE_FILE = "state.safetensors"

Watch: TypeAlias = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


class ExpertsTraining:
    """One job's training, from the start or from where a crash left it.

    Args:
        job: the reserved job.
        trainer: of the frozen model that the job names, which gets the bank, and the node's units.
        public: router inputs of the job's public text.
        workshop: folder of the durable state, of this job alone.
        entropy: seeded only where the job is.
        save_every: steps between durable states.
        watch: told of what, how much is done, out of how much; for the node's own eyes.

    Raises:
        PlanRefused: the base, its bank or its embedding is not what the job was charged for.

    """

    def __init__(
        self,
        job: ExpertsJob,
        trainer: LocalTrainer,
        public: PublicInputs,
        workshop: Path,
        entropy: Entropy,
        *,
        save_every: int = 10,
        watch: Watch = silent,
    ) -> None:
        assert isinstance(trainer.model, Decoder), "only a Decoder can be branched"
        _check_base(job, trainer.model)
        self._job, self._trainer, self._base = job, trainer, trainer.model
        self._public, self._workshop, self._entropy = public, workshop, entropy
        self._save_every, self._watch = save_every, watch

    def train(self) -> Mapping[str, Tensor]:
        """Release the embedding, take the plan's steps, and return the module's tensors.

        Formal guarantee: the result is a post-processing of one release of `plan.embedding` and
        `plan.step.releases` releases of `plan.step`, however often the training was interrupted, if
        interruptions do not depend on the data (docs/privacy.md, "Owned experts").

        """
        branch(self._base, self._job.sources, self._rows(), train_rows=self._job.train_rows)
        state = self._resumed()
        while state.step < self._job.plan.step.releases:
            state = self._step(state)
            if state.step % self._save_every == 0:
                replace_durably(self._workshop / STATE_FILE, state.to_bytes())
            self._watch("steps", state.step, self._job.plan.step.releases)
        write_vector(self._base, state.average_D)
        return owned_tensors(self._base)

    def _step(self, state: OptimiserState) -> OptimiserState:
        """Draw, clip, sum, add noise, divide by the constant B, and let Adam move."""
        step, place = self._job.plan.step, (*self._place(), state.step + 1)
        sampler = PoissonSampler(step.sampling_probability, self._entropy.uniform(*place))
        drawn = sampler.draw(self._trainer.unit_count)
        write_vector(self._base, state.vector_D)
        clipped_D = self._trainer.clipped_sum(drawn, step)
        sum_D = torch.from_numpy(noised_sum(clipped_D, step, self._entropy.gaussian(*place)))
        return adam_step(
            state,
            sum_D,
            step.expected_batch,
            self._job.optimiser,
            step.releases,
            noise_variance=release_variance(step, 1),
        )

    def _rows(self) -> Tensor:
        """Router rows from the one release of the embedding, [L, N, D]."""
        path = self._workshop / ROWS_FILE
        if path.exists():
            return load(path.read_bytes())["rows"]
        # A state without its rows would put a second embedding's noise beside the first's.
        (self._workshop / STATE_FILE).unlink(missing_ok=True)
        sync_directory(self._workshop)
        rows_LND = self._drawn_rows()
        replace_durably(path, save({"rows": rows_LND.contiguous()}))
        return rows_LND

    def _drawn_rows(self) -> Tensor:
        job, step = self._job, self._job.plan.embedding
        source = self._entropy.gaussian(*self._place(), 0)
        total = release_embedding(self._embeddings(), step, job.plan.embedding_length, source)
        direction_LD = torch.from_numpy(total).float().view_as(self._public.centre_LD)
        return router_rows(
            self._base, direction_LD, job.sources, self._public, gain=job.gain, margin=job.margin
        )

    def _embeddings(self) -> Iterator[Tensor]:
        """Each unit's embedding, computed alone: no other unit can move it, not in the last bit."""
        for done, rows in enumerate(self._trainer.units.rows, start=1):
            token_BT, target_BT = stack_rows(rows, self._job.sequence_length)
            found_BLD = sequence_embeddings(self._base, token_BT, target_BT, self._public.centre_LD)
            yield found_BLD.sum(0)
            self._watch("embedding", done, self._trainer.unit_count)

    def _resumed(self) -> OptimiserState:
        path = self._workshop / STATE_FILE
        if path.exists():
            return OptimiserState.from_bytes(path.read_bytes())
        return OptimiserState.start(read_vector(self._base))

    def _place(self) -> tuple[str, str, str]:
        return self._job.owner, self._job.run, self._job.digest().hex()


def bank_layout(
    config: ModelConfig, sources: tuple[int, ...], *, train_rows: bool
) -> tuple[tuple[str, int], ...]:
    """(name, element count) of the tensors that a branched model trains; no weight is allocated."""
    with torch.device("meta"):
        shape = Decoder(config)
        branch(shape, sources, train_rows=train_rows)
    return trainable_layout(shape)


def _check_base(job: ExpertsJob, base: Decoder) -> None:
    config = base.config
    charged = (job.base_digest, job.trainable, job.plan.embedding_length)
    layout = bank_layout(config, job.sources, train_rows=job.train_rows)
    if charged != (model_digest(base), layout, config.layers * config.hidden_size):
        raise PlanRefused(
            PlanCode.WRONG_MODEL,
            "trainable",
            "Expected the base, bank and embedding that the job names, got others. Order it again.",
        )
