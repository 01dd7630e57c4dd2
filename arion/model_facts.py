"""What can be said of a model without loading it: sizes, memory, experts and their owners."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from models.checkpoint import inspect_model
from models.composition import read_ownership
from models.config import ModelConfig, preset, preset_names
from models.counts import ParameterCounts, parameter_counts, weight_bytes
from models.expert_module import PUBLIC
from models.modular import is_modular, read_cards


@dataclass(frozen=True)
class Stored:
    """A model folder on disk.

    Attributes:
        family: transformers' model_type. types: of the weights, as safetensors names them.
        files: that hold them. file_bytes: of all of them.

    """

    family: str
    types: tuple[str, ...]
    files: int
    file_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """A model, described.

    Attributes:
        name: of the preset or folder. owners: how many experts of each layer belong to whom.
        stored: None for a preset.

    """

    name: str
    config: ModelConfig
    counts: ParameterCounts
    owners: Mapping[str, int]
    stored: Stored | None = None

    def as_json(self) -> dict[str, object]:
        """Everything, for programs."""
        return {
            "name": self.name,
            "parameters": self.counts.total,
            "active_parameters": self.counts.active,
            "embedding_parameters": self.counts.embedding,
            "weight_bytes": weight_bytes(self.counts.total),
            "expert_owners": dict(self.owners),
            "stored": None if self.stored is None else asdict(self.stored),
            "config": self.config.model_dump(),
        }


def facts_of(name_or_path: str) -> ModelFacts:
    """Describe a preset or, where there is none of that name, a model folder.

    A modular model is described with all of its modules, and its base's files.

    Raises:
        ValueError: neither, or a folder that `models.checkpoint.inspect_model` refuses, or one
            whose owners cannot be read.

    """
    if name_or_path in preset_names():
        return preset_facts(name_or_path)
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise ValueError(
            f"Expected a model folder or a preset out of {', '.join(preset_names())}, got "
            f"{name_or_path!r}."
        )
    if is_modular(folder):
        owners = {card.owner: len(card.sources) for card in read_cards(folder)}
        return _folder_facts(folder, folder / "base", owners)
    found = read_ownership(folder)
    shares = () if found is None else found.shares
    owners = {share.owner: share.count for share in shares if share.owner != PUBLIC}
    return _folder_facts(folder, folder, owners)


def _folder_facts(folder: Path, model: Path, owners: Mapping[str, int]) -> ModelFacts:
    """Describe a model folder.

    Args:
        folder: its name. model: where config.json and weights are: the folder, or the base in it.
        owners: experts per layer of each owner; the others are public. Those of a modular model
            come on top of its base's, those of a composed one are among them.

    """
    found = inspect_model(model)
    config = found.config
    if model != folder:
        experts = config.experts + sum(owners.values())
        config = config.model_copy(update={"experts": experts})
    files = {header.path for header in found.headers.values()}
    types = tuple(sorted({header.type for header in found.headers.values()}))
    size = sum(path.stat().st_size for path in files)
    return ModelFacts(
        name=str(folder),
        config=config,
        counts=parameter_counts(config),
        owners={PUBLIC: config.experts - sum(owners.values()), **owners},
        stored=Stored(found.family.model_type, types, len(files), size),
    )


def preset_facts(name: str) -> ModelFacts:
    """Describe a preset."""
    config = preset(name)
    return ModelFacts(name, config, parameter_counts(config), {PUBLIC: config.experts})
