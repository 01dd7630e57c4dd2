"""Train an institution's own experts on its text, without noise: for text that is not private.

Shapes: B sequences, T positions, L layers, D hidden, N owned experts per layer.
"""

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.decoder import Decoder
from models.owned import PublicInputs, branch, public_inputs, router_rows, sequence_embeddings
from models.pretrain import warm_up
from models.snapshot import Snapshot
from models.training_settings import WarmUp


class OwnerRecipe(BaseModel):
    """How an owner's experts come to be.

    Attributes:
        sources: the base's experts that they start from.
        gain, margin: of the router rows, see `models.owned.router_rows`.
        train_rows: whether the rows are trained with the experts.
        public_share: share of the training tokens that is public text.
        embedded: sequences of each text that the rows are made from.
        training: steps, batch, rate; router losses stay off, for most rows are frozen.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sources: tuple[int, ...] = Field(min_length=1)
    gain: float = Field(default=1.0, gt=0)
    margin: float = Field(default=1.0)
    train_rows: bool = True
    public_share: float = Field(default=0.0, ge=0, lt=1)
    embedded: int = Field(default=64, gt=0)
    training: WarmUp = WarmUp(steps=400, learning_rate=2e-3, balance=0.0, z=0.0)


def train_owner(
    model: Decoder,
    own: Tensor,
    public: Tensor,
    recipe: OwnerRecipe,
    *,
    generator: torch.Generator,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    snapshot: Snapshot | None = None,
) -> float:
    """Branch owned experts off `model` and train them on the owner's text.

    Args:
        model: the base; changed in place, its own weights stay as they are.
        own, public: tokens of the owner's and of public text, int32, longer than a sequence.
        progress: called with (step from 1, loss of the step in nats per token).
        snapshot: where to go on from, and what to write; None keeps nothing.

    Returns:
        Mean loss of the last 50 steps that this call made, nats per token.

    Raises:
        ValueError: a text is too short, unknown sources, or the loss is not finite.

    """
    length = recipe.training.sequence_length
    seen = public_inputs(model, windows(public, recipe.embedded, length, generator))
    direction_LD = domain_direction(model, windows(own, recipe.embedded, length, generator), seen)
    rows_LND = router_rows(
        model, direction_LD, recipe.sources, seen, gain=recipe.gain, margin=recipe.margin
    )
    branch(model, recipe.sources, rows_LND, train_rows=recipe.train_rows)
    stream = with_public(own, public, recipe.public_share)
    return warm_up(model, stream, recipe.training, generator, progress, snapshot=snapshot)


def with_public(own: Tensor, public: Tensor, share: float) -> Tensor:
    """Append public tokens, repeated where too few, until they are `share` of all."""
    added = round(len(own) * share / (1 - share))
    return torch.cat((own, public.repeat(-(-added // len(public)))[:added]))


def domain_direction(model: Decoder, token_BT: Tensor, public: PublicInputs) -> Tensor:
    """Sum of the sequences' domain embeddings, [L, D]."""
    return sequence_embeddings(model, token_BT, token_BT, public.centre_LD).sum(0)


def windows(stream: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Random windows of a stream of tokens, int64 [count, length].

    Raises:
        ValueError: the stream is shorter than a window.

    """
    if len(stream) <= length:
        raise ValueError(
            f"Expected more than {length} tokens of text, got {len(stream)}. Give more text or a "
            "shorter sequence length."
        )
    begin_B = torch.randint(0, len(stream) - length, (count,), generator=generator)
    return stream[begin_B[:, None] + torch.arange(length)].long()
