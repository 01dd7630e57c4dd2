"""Modules and their base as one model: concatenated, never trained together.

The composed model is an ordinary one: the base's experts first, then those of every module in order
of owner, their router rows likewise. A sidecar in its folder names whose each expert is.

Leaving a module out equals masking its router rows: a token's weights are the softmax over the
experts it chose, so what was not chosen does not enter, not even in the last bit. (The router's
product must round alike for E and for fewer rows. It does in fp32 on CPU for batches of 16 tokens
and more with at least two experts left, tests/models/test_composition.py; a single token's may
differ in the last bit.)

Source: FlexOlmo (arXiv 2507.07024), §3.2.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from models.checkpoint import save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.durable import put, write_whole
from models.expert_module import PUBLIC, ExpertModule, PrivacyClaim
from models.faults import first_fault
from models.names import Digest
from models.owned import OwnedError
from models.tokenizer import Tokenizer

SIDECAR = "experts.json"


class OwnedShare(BaseModel):
    """Whose experts first .. first + count - 1 of every layer are.

    Attributes:
        module: digest of the module they came from; None for the base's own.
        licence, privacy: as on the module's card; None for the base's own.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    first: int = Field(ge=0)
    count: int = Field(gt=0)
    module: Digest | None = None
    licence: str | None = None
    privacy: PrivacyClaim | Literal["not private"] | None = None


class Ownership(BaseModel):
    """The sidecar of a composed model's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    base_digest: Digest
    shares: tuple[OwnedShare, ...]

    @model_validator(mode="after")
    def _without_gaps(self) -> "Ownership":
        ends = [0, *(share.first + share.count for share in self.shares)]
        if [share.first for share in self.shares] != ends[:-1]:
            raise ValueError("shares follow each other without gaps, from expert 0")
        return self


def compose(
    base: Decoder, modules: Sequence[ExpertModule], experts_per_token: int | None = None
) -> Decoder:
    """Return a new model of the base's experts and the modules', in order of owner.

    Args:
        base: without owned experts and adapters; not changed.
        modules: checked against this base, at most one per owner.
        experts_per_token: of the composed model; None for the base's number.

    Raises:
        OwnedError: two modules of one owner, or more experts per token than there are.

    """
    ordered = in_order(modules)
    experts = base.config.experts + sum(len(module.card.sources) for module in ordered)
    per_token = experts_per_token or base.config.experts_per_token
    if per_token > experts:
        raise OwnedError(
            f"Expected at most {experts} experts per token, got {per_token}. Lower the number or "
            "take more modules."
        )
    sizes = {"experts": experts, "experts_per_token": per_token}
    composed = Decoder(base.config.model_copy(update=sizes)).to(base.embedding)
    state = composed.state_dict()  # the composed model's own weights, filled part by part
    for name, weight in base.state_dict().items():
        state[name][: len(weight)] = weight
    first = base.config.experts
    for module in ordered:
        for name, weight in _places(module, base.config):
            state[name][first : first + len(weight)] = weight
        first += len(module.card.sources)
    return composed


def _places(module: ExpertModule, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's weights, [its experts, ...], under the names of a decoder's."""
    for layer, bank in enumerate(module.banks(config)):
        for name, weight in bank.state_dict().items():
            yield f"blocks.{layer}.experts.{name}", weight


def in_order(modules: Sequence[ExpertModule]) -> list[ExpertModule]:
    """Sort by owner, the order of a composed model's experts.

    Raises:
        OwnedError: two modules of one owner.

    """
    ordered = sorted(modules, key=lambda module: module.card.owner)
    owners = [module.card.owner for module in ordered]
    twice = sorted({owner for owner in owners if owners.count(owner) > 1})
    if twice:
        raise OwnedError(f"Expected one module per owner, got several of {twice}. Choose one.")
    return ordered


def ownership(base: Decoder, base_digest: str, modules: Sequence[ExpertModule]) -> Ownership:
    """Say whose the experts of `compose(base, modules)` are."""
    shares = [OwnedShare(owner=PUBLIC, first=0, count=base.config.experts)]
    for module in in_order(modules):
        card, last = module.card, shares[-1]
        shares.append(
            OwnedShare(
                owner=card.owner,
                first=last.first + last.count,
                count=len(card.sources),
                module=card.weights_digest,
                licence=card.licence,
                privacy=card.privacy,
            )
        )
    return Ownership(base_digest=base_digest, shares=tuple(shares))


def save_composed(model: Decoder, tokenizer: Tokenizer, owners: Ownership, folder: Path) -> None:
    """Write a model folder that transformers loads, with its sidecar, as a whole.

    Raises:
        OwnedError: there is something at `folder` already.

    """
    if folder.exists():
        raise OwnedError(f"Expected no {folder} yet, got one. Choose another place.")
    part = folder.with_name(folder.name + ".composing")
    save_model(model, tokenizer, part)
    write_whole(part / SIDECAR, (owners.model_dump_json(indent=2) + "\n").encode())
    put(part, folder)


def read_ownership(folder: Path) -> Ownership | None:
    """Read the sidecar of a model folder; None where all experts are the model's own.

    Raises:
        OwnedError: a sidecar that is not one.

    """
    path = folder / SIDECAR
    if not path.exists():
        return None
    try:
        return Ownership.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise OwnedError(
            f"Expected the owners of experts in {path}, got {first_fault(error)}. "
            "Compose the model again."
        ) from error
