"""What can be said of a model without loading it: sizes, memory, experts and their owners."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.config import ModelConfig, preset
from models.counts import ParameterCounts, parameter_counts, weight_bytes

PUBLIC = "public"


@dataclass(frozen=True)
class ModelFacts:
    """A model, described.

    Attributes:
        name: of the preset. owners: how many experts of each layer belong to whom.

    """

    name: str
    config: ModelConfig
    counts: ParameterCounts
    owners: Mapping[str, int]

    def as_json(self) -> dict[str, object]:
        """Everything, for programs."""
        return {
            "name": self.name,
            "parameters": self.counts.total,
            "active_parameters": self.counts.active,
            "embedding_parameters": self.counts.embedding,
            "weight_bytes": weight_bytes(self.counts.total),
            "expert_owners": dict(self.owners),
            "config": self.config.model_dump(),
        }


def preset_facts(name: str) -> ModelFacts:
    """Describe a preset.

    Raises:
        ValueError: there is no such preset.

    """
    config = preset(name)
    return ModelFacts(name, config, parameter_counts(config), expert_owners(config))


def expert_owners(config: ModelConfig) -> dict[str, int]:
    """Experts per layer by owner; those that came with the model are public."""
    return {PUBLIC: config.experts}
