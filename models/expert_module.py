"""Expert modules: one owner's experts as a plain safetensors file, with a card beside it.

`<owner>/<digest>.safetensors` holds the tensors that `models.owned.owned_tensors` names, and
`<owner>/<digest>.json` the card; the digest is the SHA-256 of the safetensors file. The card is
written last: a module without one is not there.

Shapes: D hidden, G expert width, N owned experts per layer.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.config import ModelConfig
from models.durable import file_digest, put, write_whole
from models.experts import ExpertBank
from models.faults import first_fault
from models.names import Digest, OwnerName, Statement
from models.owned import OwnedError, module_views

PUBLIC = "public"  # the owner of experts that came with the base
NOT_PRIVATE: Final = "not private"
_SUFFIX = ".safetensors"


class PrivacyClaim(BaseModel):
    """What a module may tell of its owner's data: integers rounded up, as in the ledger.

    Attributes:
        epsilon_micro: epsilon in millionths. delta_1e15: delta in units of 1e-15.
        unit: whose data is protected: "record", or the field that names the unit.
        accountant: what computed the claim. ledger: where the owner's ledger wrote it down.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon_micro: int = Field(ge=0)
    delta_1e15: int = Field(ge=0)
    unit: Annotated[str, Field(min_length=1, max_length=200)]
    accountant: Statement
    ledger: Statement


class Facts(BaseModel):
    """What an owner says of its module.

    Attributes:
        data: what it was trained on. licence: on which terms it may be used.
        privacy: the claim, or "not private".
        sources: the base's experts that it branched from. base_digest: `model_digest` of the base.
        recipe: how it was trained, for people and for repeating it.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: OwnerName
    data: Statement
    licence: Statement
    privacy: PrivacyClaim | Literal["not private"]
    base_digest: Digest
    sources: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    recipe: dict[str, JsonValue]

    @field_validator("owner")
    @classmethod
    def _not_reserved(cls, owner: str) -> str:
        if owner == PUBLIC:
            raise ValueError(f"{PUBLIC!r} names the base's own experts. Choose another name.")
        return owner


class Card(Facts):
    """The facts, and what binds them to the bytes.

    Attributes:
        weights_digest: SHA-256 of the safetensors file. tensors: SHA-256 of each tensor's bytes.

    """

    format: Literal[1] = 1
    weights_digest: Digest
    tensors: dict[str, Digest]


@dataclass(frozen=True)
class ExpertModule:
    """A module whose card and bytes agree, checked against the base it belongs to."""

    card: Card
    tensors: Mapping[str, Tensor]

    def banks(self, config: ModelConfig) -> list[ExpertBank]:
        """Its experts, one bank per layer, in fp32."""
        filled = _empty_banks(config, len(self.card.sources))
        for name, view in module_views(filled):
            view.copy_(self.tensors[name])
        return filled


def card_path(weights: Path) -> Path:
    """Where the card of a module's safetensors file lies."""
    return weights.with_suffix(".json")


def write_module(folder: Path, tensors: Mapping[str, Tensor], facts: Facts) -> Path:
    """Write a module into `folder`/<owner>; nothing is there, or all of it.

    Args:
        tensors: as `models.owned.owned_tensors` returns them.

    Returns:
        Path of the safetensors file.

    Raises:
        OwnedError: a tensor that is not finite.

    """
    _check_finite(tensors, facts.owner)
    place = folder / facts.owner
    place.mkdir(parents=True, exist_ok=True)
    part = place / "module.part"
    save_file(dict(tensors), part, metadata={"format": "pt"})
    digest = file_digest(part)
    weights = place / (digest + _SUFFIX)
    put(part, weights)
    names = {name: _tensor_digest(tensor) for name, tensor in tensors.items()}
    card = Card(**facts.model_dump(), weights_digest=digest, tensors=names)
    write_whole(card_path(weights), (card.model_dump_json(indent=2) + "\n").encode())
    return weights


def read_card(weights: Path) -> Card:
    """Read a module's card alone; only its form is checked.

    Raises:
        OwnedError: no card, or one with missing, unknown or impossible entries.

    """
    path = card_path(weights)
    if not path.is_file():
        raise OwnedError(
            f"Expected a card at {path}, got none. Copy both files of the module: *.safetensors "
            "and *.json."
        )
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise OwnedError(
            f"Expected a module's card at {path}, got {first_fault(error)}. Ask its owner for "
            "the card as it was written."
        ) from error


def read_module(weights: Path, config: ModelConfig, base_digest: str) -> ExpertModule:
    """Read a module and check everything: card, bytes, base, names, shapes, values.

    Args:
        weights: the safetensors file; its card lies beside it.
        config, base_digest: shape and `model_digest` of the base that it is to be used with.

    Raises:
        OwnedError: anything at all is wrong; the message names it.

    """
    card = read_card(weights)
    _check_bytes(weights, card)
    if card.base_digest != base_digest:
        raise OwnedError(
            f"Expected a module of base {base_digest[:16]}, got one of base "
            f"{card.base_digest[:16]} from {card.owner!r}. A module works with the base that it "
            "was trained against only."
        )
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise OwnedError(
            f"Expected a safetensors file at {weights}, got another ({error}). Ask its owner for "
            "the module as it was written."
        ) from error
    _check_tensors(tensors, card, config)
    return ExpertModule(card, tensors)


def modules_in(folder: Path) -> Iterator[Path]:
    """Yield the safetensors file of every module written into `folder`, in order of name."""
    for path in sorted(folder.glob("*/*" + _SUFFIX)):
        if re.fullmatch("[0-9a-f]{64}", path.stem) and card_path(path).is_file():
            yield path


def _check_bytes(weights: Path, card: Card) -> None:
    if not weights.is_file():
        raise OwnedError(f"Expected a module at {weights}, got none. Check the path.")
    digest = file_digest(weights)
    if digest != card.weights_digest:
        raise OwnedError(
            f"Expected digest {card.weights_digest[:16]} as the card says, got {digest[:16]} of "
            f"{weights}. The file is damaged or not the one that the card describes."
        )


def _check_tensors(tensors: Mapping[str, Tensor], card: Card, config: ModelConfig) -> None:
    if max(card.sources) >= config.experts:
        raise OwnedError(
            f"Expected sources below {config.experts}, got {list(card.sources)} in the card of "
            f"{card.owner!r}. The card belongs to another base."
        )
    with torch.device("meta"):
        wanted = dict(module_views(_empty_banks(config, len(card.sources))))
    missing, surplus = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or surplus:
        raise OwnedError(
            f"Expected exactly the tensors of {len(card.sources)} experts in {config.layers} "
            f"layers from {card.owner!r}, got missing {missing[:3]}, surplus {surplus[:3]}. The "
            "module belongs to another base."
        )
    for name, place in wanted.items():
        tensor = tensors[name]
        if tensor.shape != place.shape or tensor.dtype != torch.float32:
            raise OwnedError(
                f"Expected fp32 {tuple(place.shape)} for {name} from {card.owner!r}, got "
                f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}. The module "
                "belongs to another base."
            )
    _check_finite(tensors, card.owner)
    found = {name: _tensor_digest(tensor) for name, tensor in tensors.items()}
    if found != card.tensors:
        raise OwnedError(
            f"Expected the tensors that the card of {card.owner!r} names, got others. The card "
            "was changed; ask its owner for it as it was written."
        )


def _check_finite(tensors: Mapping[str, Tensor], owner: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise OwnedError(
                f"Expected finite weights, got NaN or infinity in {name} of {owner!r}. The module "
                "is damaged."
            )


def _empty_banks(config: ModelConfig, experts: int) -> list[ExpertBank]:
    sizes = config.hidden_size, config.expert_hidden_size, experts
    return [ExpertBank(*sizes).requires_grad_(False) for _ in range(config.layers)]


def _tensor_digest(tensor: Tensor) -> str:
    data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()
