"""From an owner's text to a module, without noise; what is finished is not trained again.

A training that was stopped goes on from its last snapshot, which lies beside the module to come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arion.institutions import read_public
from arion.progress import Progress
from models.checkpoint import load_model, model_digest
from models.expert_module import NOT_PRIVATE, Facts, modules_in, read_card, write_module
from models.owned import OwnedError, owned_tensors
from models.owner_training import OwnerRecipe, train_owner
from models.pretrain import token_stream
from models.snapshot import Snapshot
from models.training_settings import WarmUp
from privacy.canonical import JsonLike, canonical_bytes, sha256_hex

_SNAPSHOT_EVERY = 50


@dataclass(frozen=True)
class TrainingOrder:
    """What to train, and what the card says of it.

    Attributes:
        base: the public model's folder. owner: whose experts.
        text: the owner's text. public: public text, to set the router's rows by.
        out: folder of modules. data, licence: statements for the card.
        experts: per layer; None for as many as the base has.
        steps: of `batch` sequences of `length` tokens.

    """

    base: Path
    owner: str
    text: Sequence[Path]
    public: Sequence[Path]
    out: Path
    data: str
    licence: str
    experts: int | None
    steps: int
    learning_rate: float
    seed: int
    batch: int = 16
    length: int = 128


def train_module(order: TrainingOrder, progress: Progress) -> Path:
    """Train the module, or find it finished; return its safetensors file.

    Raises:
        ValueError: anything of the order cannot be met; nothing is written then.

    """
    model, tokenizer = load_model(order.base)
    training = WarmUp(
        steps=order.steps, batch=order.batch, sequence_length=order.length,
        learning_rate=order.learning_rate, balance=0.0, z=0.0,
    )  # fmt: skip
    there = model.config.experts
    if order.experts is not None and order.experts > there:
        raise OwnedError(
            f"Expected at most {there} experts per layer, as many as the base has, got "
            f"{order.experts}. Each starts as a copy of one: lower --experts."
        )
    sources = tuple(range(order.experts or there))
    recipe = OwnerRecipe(sources=sources, training=training)
    own = token_stream(tokenizer, read_public(order.text))
    public = token_stream(tokenizer, read_public(order.public))
    facts = Facts(
        owner=order.owner,
        data=order.data,
        licence=order.licence,
        privacy=NOT_PRIVATE,
        base_digest=model_digest(model),
        sources=sources,
        recipe={**recipe.model_dump(mode="json"), "seed": order.seed, "tokens": len(own)},
    )
    if (finished := find_finished(order.out, facts)) is not None:
        return finished
    progress.stage(order.owner, order.steps)
    snapshot = _snapshot(order, facts, own, public)
    train_owner(
        model,
        own,
        public,
        recipe,
        generator=torch.Generator().manual_seed(order.seed),
        progress=lambda step, loss: progress.step(step, f"loss {loss:.3f}"),
        snapshot=snapshot,
    )
    weights = write_module(order.out, owned_tensors(model), facts)
    snapshot.path.unlink(missing_ok=True)
    return weights


def _snapshot(order: TrainingOrder, facts: Facts, own: Tensor, public: Tensor) -> Snapshot:
    """Where this training goes on from: of the same facts, on the same tokens."""
    texts: list[JsonLike] = [sha256_hex(text.numpy().tobytes()) for text in (own, public)]
    run: JsonLike = {"facts": facts.model_dump(mode="json"), "texts": texts}
    order.out.mkdir(parents=True, exist_ok=True)
    path = order.out / f"{order.owner}.unfinished.safetensors"
    return Snapshot(path, _SNAPSHOT_EVERY, canonical_bytes(run).decode())


def find_finished(out: Path, facts: Facts) -> Path | None:
    """Return the module in `out` that these facts describe, if it is there.

    Raises:
        OwnedError: the owner has a module in `out` that other facts describe.

    """
    for weights in modules_in(out):
        if weights.parent.name != facts.owner:
            continue
        if Facts(**read_card(weights).model_dump(include=set(Facts.model_fields))) == facts:
            return weights
        raise OwnedError(
            f"Expected no other module of {facts.owner!r} in {out}, got {weights.name} of another "
            "recipe, text or statement. Choose another --out."
        )
    return None
