"""Public warm-up: ordinary training on public text, before anything private is touched.

Shapes: B sequences, T positions.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.decoder import Decoder
from models.experts import ALL_EXPERTS, Activation
from models.parallel import ALONE, World, shard
from models.precision import MasterWeights, bf16_training
from models.snapshot import Snapshot, Trained
from models.tokenizer import Tokenizer
from models.training_settings import WarmUp


def token_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Concatenate documents with end-of-text after each, int32 [total].

    Begin-of-text stands before each where it is another token than end-of-text.
    """
    begin, end = tokenizer.begin_of_text_id, tokenizer.end_of_text_id
    opening = [] if begin == end else [begin]
    ids: list[int] = []
    for first in range(0, len(texts), 256):
        for encoded in tokenizer.encode(texts[first : first + 256]):
            ids.extend((*opening, *encoded, end))
    return torch.tensor(ids, dtype=torch.int32)


def warm_up(
    model: Decoder,
    stream: Tensor,
    settings: WarmUp,
    generator: torch.Generator,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    *,
    world: World = ALONE,
    snapshot: Snapshot | None = None,
) -> float:
    """Train all weights that are not frozen on random windows of public text.

    Args:
        model: the same at every process, moved to its device; several processes shard it
            (`models.parallel.unsharded` gives a whole one back, in main memory).
        stream: public tokens, int32, longer than settings.sequence_length.
        generator: draws the windows; in the same state at every process.
        progress: called with (step from 1, loss of the step in nats per token).
        world: the processes that train; each takes its share of every batch.
        snapshot: where to go on from, and what to write; None keeps nothing.

    Returns:
        Mean loss of the last 50 steps that this call made, nats per token; 0 if it made none.

    Raises:
        ValueError: the stream is too short, the processes cannot share a batch evenly, the snapshot
            is another run's, or the loss is not finite.

    """
    _check(stream, settings, world)
    bf16 = settings.precision == "bf16"
    if world.size > 1:
        shard(model, world, torch.bfloat16 if bf16 else None)
    else:
        model.to(world.device)
    losses: list[float] = []
    model.checkpoint_blocks = settings.checkpoint_blocks
    with bf16_training(model, enabled=bf16 and world.size == 1) as masters:
        run = _trained(model, masters, settings, generator)
        done = snapshot.restore(run) if snapshot else 0
        if masters is not None:
            masters.give_weights()
        for step in range(done, settings.steps):
            for group in run.optimiser.param_groups:
                group["lr"] = settings.learning_rate * cosine(step, settings.steps)
            window_BT = windows(stream, settings.batch, settings.sequence_length, generator)
            window_BT = window_BT[world.rank :: world.size]
            activation = _draw_activation(model, step, settings, generator)
            own = _step(
                model,
                window_BT.to(world.device),
                activation,
                settings,
                optimiser=run.optimiser,
                masters=masters,
            )
            losses.append(_finite(world.mean(own), step))
            if snapshot:
                snapshot.save(step + 1, run)
            progress(step + 1, losses[-1])
    model.checkpoint_blocks = False
    return sum(losses[-50:]) / max(len(losses[-50:]), 1)


def _check(stream: Tensor, settings: WarmUp, world: World) -> None:
    length = settings.sequence_length
    if len(stream) <= length + 1:
        raise ValueError(
            f"Expected more than {length + 1} public tokens, got {len(stream)}. "
            "Give more public text or a shorter warm_up.sequence_length."
        )
    if settings.batch % world.size:
        raise ValueError(
            f"Expected a batch that {world.size} processes can share evenly, got {settings.batch}. "
            f"Choose a multiple of {world.size}."
        )


def _trained(
    model: Decoder, masters: MasterWeights | None, settings: WarmUp, generator: torch.Generator
) -> Trained:
    """What changes: the weights that are not frozen (their masters, where there are), and AdamW."""
    weights = list(model.parameters()) if masters is None else masters.parameters
    trained = {
        name: weight
        for (name, own), weight in zip(model.named_parameters(), weights, strict=True)
        if own.requires_grad
    }
    optimiser = torch.optim.AdamW(
        trained.values(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    return Trained(trained, optimiser, generator)


def _finite(loss: Tensor, step: int) -> float:
    if not math.isfinite(float(loss)):
        raise ValueError(
            f"Expected a finite warm-up loss, got {float(loss)} at step {step + 1}. "
            "Lower the learning rate: --learning-rate, or model.warm_up.learning_rate of a run."
        )
    return float(loss)


def _step(
    model: Decoder,
    window_BT: Tensor,
    activation: Activation,
    settings: WarmUp,
    *,
    optimiser: torch.optim.Optimizer,
    masters: MasterWeights | None,
) -> Tensor:
    """Take one optimiser step; return the loss in nats per token.

    Every window has as many targets, so the processes' means, which FSDP averages, are the batch's.
    """
    optimiser.zero_grad()
    loss = model.loss(
        window_BT[:, :-1],
        window_BT[:, 1:],
        balance=settings.balance,
        z=settings.z,
        activation=activation,
    )
    (loss.total_B.sum() / loss.tokens_B.sum() + loss.router_B.mean()).backward()  # type: ignore[no-untyped-call]
    if masters is not None:
        masters.take_gradients()
    trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()
    if masters is not None:
        masters.give_weights()
    return loss.total_B.detach().sum() / loss.tokens_B.sum()


def _draw_activation(
    model: Decoder, step: int, settings: WarmUp, generator: torch.Generator
) -> Activation:
    """Every other step: k_max uniform in 1..k, tau uniform in [0, 1), the same for all tokens."""
    if not settings.random_activation or step % 2 == 0:
        return ALL_EXPERTS
    most = model.config.experts_per_token
    k = int(torch.randint(1, most + 1, (), generator=generator))
    return Activation(k, float(torch.rand((), generator=generator)))


def cosine(step: int, steps: int, floor: float = 0.03) -> float:
    """Learning-rate factor: linear over the first 5%, then a cosine down to `floor`."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    along = (step - rise) / max(1, steps - rise)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along))


def windows(stream: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw windows of length + 1 tokens that follow each other in the text, int64 [B, length + 1].

    Args:
        stream: integers, longer than `length`.

    """
    begin_B = torch.randint(0, len(stream) - length, (batch,), generator=generator)
    return stream[begin_B[:, None] + torch.arange(length + 1)].long()
