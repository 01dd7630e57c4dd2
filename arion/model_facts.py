"""What can be said of a model without loading it: sizes, memory, experts and their owners."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from models.checkpoint import inspect_model
from models.composition import read_ownership
from models.config import ModelConfig, preset, preset_names
from models.counts import ParameterCounts, parameter_counts, weight_bytes
from models.expert_module import PUBLIC


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

    Raises:
        ValueError: neither, or a folder that `models.checkpoint.inspect_model` refuses.

    """
    if name_or_path in preset_names():
        return preset_facts(name_or_path)
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise ValueError(
            f"Expected a model folder or a preset out of {', '.join(preset_names())}, got "
            f"{name_or_path!r}."
        )
    found = inspect_model(folder)
    files = {header.path for header in found.headers.values()}
    types = tuple(sorted({header.type for header in found.headers.values()}))
    size = sum(path.stat().st_size for path in files)
    return ModelFacts(
        name=str(folder),
        config=found.config,
        counts=parameter_counts(found.config),
        owners=expert_owners(found.config, folder),
        stored=Stored(found.family.model_type, types, len(files), size),
    )


def preset_facts(name: str) -> ModelFacts:
    """Describe a preset."""
    config = preset(name)
    return ModelFacts(name, config, parameter_counts(config), {PUBLIC: config.experts})


def expert_owners(config: ModelConfig, folder: Path) -> dict[str, int]:
    """Experts of each layer by owner; without a sidecar all came with the model and are public.

    Raises:
        OwnedError: a sidecar that is not one.

    """
    found = read_ownership(folder)
    if found is None:
        return {PUBLIC: config.experts}
    return {share.owner: share.count for share in found.shares}
