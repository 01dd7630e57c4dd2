"""Where and in which precision a node computes what its gate then releases."""

import torch

from client.config import NodeConfig, NodeError
from models.decoder import Decoder
from models.language_model import LanguageModel


def place(model: LanguageModel, config: NodeConfig) -> None:
    """Move a model to the node's device, and set the type of its activations.

    Its weights stay fp32, so that rounds mean the same at every node.

    Raises:
        NodeError: a class that computes in fp32 only.

    """
    if config.precision == "bf16":
        if not isinstance(model, Decoder):
            raise NodeError(
                'Expected a model of the family for precision = "bf16", got another class, which '
                'trains in fp32. Set precision = "fp32" in node.toml.'
            )
        model.compute_dtype = torch.bfloat16
    model.to(config.device)


def check_default(config: NodeConfig) -> None:
    """Refuse settings that only rounds follow.

    Raises:
        NodeError: another device or precision than the default.

    """
    if (config.device, config.precision) != ("cpu", "fp32"):
        raise NodeError(
            f'Expected device = "cpu" and precision = "fp32" for owned experts, got '
            f'"{config.device}" and "{config.precision}": only rounds compute otherwise. Change '
            "node.toml for this training."
        )
