"""The model that variants are made of: a model folder, a composed one, or a modular one."""

from dataclasses import dataclass
from pathlib import Path

from models.checkpoint import load_model, model_digest
from models.composition import Ownership, compose, ownership, read_ownership
from models.decoder import Decoder
from models.expert_module import PUBLIC
from models.folders import is_ours
from models.formats.shards import Advance
from models.modular import is_modular, load_base, load_modules, read_manifest
from models.tokenizer import Tokenizer
from models.variants.experts import Kept, everything
from models.variants.extras import VariantError
from models.variants.passport import OwnerShare


@dataclass(frozen=True)
class Parent:
    """A whole model.

    Attributes:
        name: of its folder. digest: `model_digest`. ownership: None where all experts are public.

    """

    name: str
    model: Decoder
    tokenizer: Tokenizer
    digest: str
    ownership: Ownership | None

    @property
    def all_experts(self) -> Kept:
        """Every expert of every layer."""
        return everything(self.model.config)

    def shares(self, kept: Kept) -> tuple[OwnerShare, ...]:
        """Say whose the experts are that are kept; owners without one are left out."""
        if self.ownership is None:
            return (OwnerShare(owner=PUBLIC, experts=sum(map(len, kept))),)
        found = []
        for share in self.ownership.shares:
            own = range(share.first, share.first + share.count)
            count = sum(expert in own for layer in kept for expert in layer)
            if count:
                facts = share.model_dump(include={"owner", "module", "privacy", "licence"})
                found.append(OwnerShare(experts=count, **facts))
        return tuple(found)


def open_parent(folder: Path, advance: Advance = lambda done, total: None) -> Parent:
    """Read a model to make variants of; of a modular one, the base with every owner's experts.

    Raises:
        CheckpointError: a folder that cannot be read. OwnedError: owners that cannot be read.
        VariantError: a model of another class than our decoder.

    """
    if is_modular(folder):
        base, tokenizer = load_base(folder)
        modules = load_modules(folder, base)
        owners = ownership(base, read_manifest(folder).base_digest, modules)
        model = compose(base, modules)
        return Parent(folder.name, model, tokenizer, model_digest(model), owners)
    if not is_ours(folder):
        raise VariantError(
            f"Expected a model of the Arion family, got another class in {folder}. Convert it with "
            "its own tools."
        )
    model, tokenizer = load_model(folder, advance)
    return Parent(
        folder.resolve().name, model, tokenizer, model_digest(model), read_ownership(folder)
    )
