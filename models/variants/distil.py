"""Distillation: a student learns to give the next-token distributions of its teacher.

The loss is KL(teacher || student), over public text alone, in chunks of tokens: the logits of all
tokens never lie in memory at once, neither forward nor backward. Every 20th block of the text is
held out and tells what the training did.

Source: Hinton et al. 2015 (arXiv 1503.02531), at temperature 1.

Shapes: B windows, T positions, N tokens, C tokens of a chunk, D hidden, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models import cross_entropy
from models.config import ModelConfig
from models.counts import parameter_counts
from models.decoder import Decoder
from models.language_model import IGNORED
from models.names import Digest
from models.pretrain import cosine, windows
from models.snapshot import Snapshot, Trained
from models.variants.extras import VariantError
from models.variants.frozen import Frozen

HELD_OUT_EVERY = 20
_MOST_HELD_OUT = 256  # blocks that are measured, spread over all that are held out
_BATCH = 16


class Distilling(Frozen):
    """Settings: AdamW, linear warm-up, cosine to 3% of the rate.

    Attributes:
        batch: windows of a step. sequence_length: their targets, in tokens.
        learning_rate: the highest.

    """

    steps: int = Field(default=1000, ge=0)
    batch: int = Field(default=16, gt=0)
    sequence_length: int = Field(default=128, gt=1)
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)

    @property
    def step_tokens(self) -> int:
        """Targets of a step."""
        return self.batch * self.sequence_length


class Standing(Frozen):
    """A student on held-out text. kl: from its teacher; loss: of the text; nats per token."""

    kl: float = Field(ge=0, allow_inf_nan=False)
    loss: FiniteFloat


class Distillation(Frozen):
    """What a passport says of a student.

    Attributes:
        teacher: `model_digest` of the parent, cut to the owners' experts that could be used.
        layers: the parent's, ascending. joined: experts of each that were joined into one.
        criterion: what of the text chose them. tokens: trained on, in all steps.
        heldout_tokens: of the same text, not trained on; teacher_loss: the teacher's on them.

    """

    teacher: Digest
    layers: Annotated[tuple[int, ...], Field(min_length=1)]
    joined: int = Field(gt=0)
    criterion: Literal["mass", "reap"]
    settings: Distilling
    tokens: int = Field(ge=0)
    heldout_tokens: int = Field(gt=0)
    teacher_loss: FiniteFloat
    before: Standing
    after: Standing


@dataclass(frozen=True)
class Lesson:
    """Public text in tokens.

    Attributes:
        stream: to draw windows from, int32 [tokens]. heldout: blocks apart from it, int64 [N, T+1].

    """

    stream: Tensor
    heldout: Tensor

    @property
    def heldout_tokens(self) -> int:
        """Targets in the held-out blocks."""
        return self.heldout[:, 1:].numel()


@dataclass(frozen=True)
class Learnt:
    """What a distillation did on the held-out blocks; see `Distillation`."""

    teacher_loss: float
    before: Standing
    after: Standing


def lesson_of(stream: Tensor, length: int) -> Lesson:
    """Hold every 20th block of length + 1 tokens out of a text.

    Raises:
        VariantError: not one whole block would be held out.

    """
    size = length + 1
    count = len(stream) // size
    if count < HELD_OUT_EVERY:
        raise VariantError(
            f"Expected at least {HELD_OUT_EVERY * size:,} tokens of public text, so that a block "
            f"of {size} can be held out, got {len(stream):,}. Give more text with --public, or "
            "lower --distil-length."
        )
    block_NT = stream[: count * size].view(count, size)
    held_N = torch.arange(count) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    rest = torch.cat((block_NT[~held_N].flatten(), stream[count * size :]))
    apart_NT = block_NT[held_N]
    most = min(_MOST_HELD_OUT, len(apart_NT))
    spread_N = torch.arange(most) * len(apart_NT) // most
    return Lesson(rest, apart_NT[spread_N].long())


def token_kl(
    student_ND: Tensor, head_VD: Tensor, teacher_ND: Tensor, teacher_head_VD: Tensor
) -> Tensor:
    """Return each token's KL(teacher || student) in nats, fp32 [N] (fp64 of fp64).

    Backward computes each chunk's logits again.

    Args:
        student_ND, teacher_ND: final hidden states; the teacher's carry no gradient.
        head_VD, teacher_head_VD: output matrices over the same vocabulary.

    """
    size = max(1, cross_entropy.CHUNK_BYTES // (4 * len(head_VD)))
    pieces = zip(_pieces(student_ND, size), _pieces(teacher_ND, size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_kl(s, head_VD, t, teacher_head_VD) for s, t in pieces])
    found = [
        checkpoint(
            _kl, s, head_VD, t, teacher_head_VD, use_reentrant=False, preserve_rng_state=False
        )
        for s, t in pieces
    ]
    return torch.cat(found)


def _pieces(x: Tensor, size: int) -> list[Tensor]:
    return [x[begin : begin + size] for begin in range(0, len(x), size)]


def _kl(student_CD: Tensor, head_VD: Tensor, teacher_CD: Tensor, teacher_head_VD: Tensor) -> Tensor:
    wide = torch.promote_types(student_CD.dtype, torch.float32)
    with torch.no_grad():
        log_p_CV = (teacher_CD @ teacher_head_VD.T).to(wide).log_softmax(-1)
    log_q_CV = (student_CD @ head_VD.T).to(wide).log_softmax(-1)
    return F.kl_div(log_q_CV, log_p_CV, reduction="none", log_target=True).sum(-1)


@torch.no_grad()
def standing(teacher: Decoder, student: Decoder, block_NT: Tensor) -> tuple[Standing, float]:
    """Return the student's standing on blocks of tokens, and the teacher's loss on them."""
    kl, loss, teacher_loss = 0.0, 0.0, 0.0
    for part_BT in _pieces(block_NT, _BATCH):
        token_BT, target_N = part_BT[:, :-1], part_BT[:, 1:].flatten()
        own_ND = student.hidden(token_BT)[0].flatten(0, 1)
        taught_ND = teacher.hidden(token_BT)[0].flatten(0, 1)
        kl += float(token_kl(own_ND, student.head, taught_ND, teacher.head).double().sum())
        loss += _nats(own_ND, student, target_N)
        teacher_loss += _nats(taught_ND, teacher, target_N)
    tokens = block_NT[:, 1:].numel()
    # Rounding may take the divergence of a student that is its teacher below 0.
    return Standing(kl=max(kl / tokens, 0.0), loss=loss / tokens), teacher_loss / tokens


def _nats(hidden_ND: Tensor, model: Decoder, target_N: Tensor) -> float:
    nats_N = cross_entropy.token_cross_entropy(hidden_ND, model.head, target_N, IGNORED)
    return float(nats_N.double().sum())


def distil(
    teacher: Decoder,
    student: Decoder,
    lesson: Lesson,
    settings: Distilling,
    *,
    generator: torch.Generator,
    progress: Callable[[int, float], None] = lambda step, kl: None,
    snapshot: Snapshot | None = None,
) -> Learnt:
    """Train a student in place, all weights but the routers.

    The same start, settings, generator and number of threads give the same bits, stopped or not.

    Args:
        teacher: of the student's vocabulary, on CPU like it.
        lesson: see `lesson_of`, cut for `settings.sequence_length`.
        generator: draws the windows.
        progress: called with (step from 1, KL of the step's windows in nats per token).
        snapshot: where to go on from, and what to write; the last step's too. None keeps nothing.

    Raises:
        VariantError: the divergence is not finite.
        SnapshotError: the snapshot is damaged, or another run's.
        ValueError: windows that are longer than the models' positions.

    """
    before, teacher_loss = standing(teacher, student, lesson.heldout)
    student.train_in_full()
    trained = {name: each for name, each in student.named_parameters() if each.requires_grad}
    optimiser = torch.optim.AdamW(
        trained.values(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    run = Trained(trained, optimiser, generator)
    done = snapshot.restore(run) if snapshot else 0
    for step in range(done, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * cosine(step, settings.steps)
        window_BT = windows(lesson.stream, settings.batch, settings.sequence_length, generator)
        kl = _step(teacher, student, window_BT, optimiser)
        if not math.isfinite(kl):
            raise VariantError(
                f"Expected a finite divergence from the teacher, got {kl} at step {step + 1}. "
                "Lower --distil-rate."
            )
        if snapshot:
            every = 1 if step + 1 == settings.steps else snapshot.every
            replace(snapshot, every=every).save(step + 1, run)
        progress(step + 1, kl)
    optimiser.zero_grad()
    after, _ = standing(teacher, student, lesson.heldout)
    return Learnt(teacher_loss, before, after)


def _step(
    teacher: Decoder, student: Decoder, window_BT: Tensor, optimiser: torch.optim.Optimizer
) -> float:
    """Take one step; return the KL before it, nats per token."""
    token_BT = window_BT[:, :-1]
    optimiser.zero_grad()
    with torch.no_grad():
        teacher_ND = teacher.hidden(token_BT)[0].flatten(0, 1)
    student_ND = student.hidden(token_BT)[0].flatten(0, 1)
    kl = token_kl(student_ND, student.head, teacher_ND, teacher.head).mean()
    kl.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(list(_trained(optimiser)), 1.0)
    optimiser.step()
    return float(kl.detach())


def _trained(optimiser: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimiser.param_groups:
        yield from group["params"]


def training_flops(teacher: ModelConfig, student: ModelConfig, tokens: int) -> int:
    """Return about how many floating-point operations a distillation takes.

    Two per token and weight forward and four backward, the output matrices once more each; products
    of positions with each other are left out.
    """
    head = student.vocab_size * student.hidden_size
    return tokens * (2 * _weights(teacher) + 6 * _weights(student) + 4 * head)


def _weights(config: ModelConfig) -> int:
    """Weights that a token is multiplied with; a table that is only looked up is none."""
    counts = parameter_counts(config)
    return counts.active - (0 if config.tie_embeddings else counts.embedding // 2)
