"""A transformers class as a LanguageModel: frozen, in evaluation mode, trained through adapters.

The class computes; only the adapters on its linear layers are ours, and they pass models.ops. The
class's own loss is never used: it averages over the batch, and with sparse experts adds balance
terms over the batch, so that sequences would couple.

Shapes: B sequences, T positions, V vocabulary, I inputs, O outputs, R LoRA rank.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models import ops
from models.cross_entropy import nats_of_logits
from models.foreign.access import logits_of, vocab_size_of, weight_of
from models.foreign.trial import sees_padding
from models.language_model import IGNORED, LanguageModel, SequenceLoss


@dataclass(frozen=True)
class Source:
    """The folder that a model came from, and where its adapted weights lie in it.

    Attributes:
        folder: a Hugging Face folder; a merged model takes all other bytes from it.
        tensors: name of the stored tensor of each adapted layer, by the layer's name.
        frozen: why a linear layer takes no adapter, by the layer's name.

    """

    folder: Path
    tensors: Mapping[str, str]
    frozen: Mapping[str, str]


class ForeignLinear(nn.Module):
    """A layer y = x W^T + b of another class, frozen, with an optional low-rank update.

    Args:
        base: an nn.Linear, or GPT-2's Conv1D, which stores W transposed.

    Source: Hu et al. 2021 (arXiv 2106.09685).

    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None
        self.lora_scale = 0.0

    @property
    def weight(self) -> Tensor:
        """W, [O, I]: a view of the layer's own parameter."""
        return weight_of(self.base)

    @property
    def bias(self) -> Tensor | None:
        """The layer's own b, [O], if it has one."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return [B, T, O]."""
        y_BTO: Tensor = self.base(x_BTI)
        if self.lora_A is None or self.lora_B is None:
            return y_BTO
        low_BTR = ops.linear(x_BTI, self.lora_A)
        return y_BTO + ops.linear(self.lora_scale * low_BTR, self.lora_B)


class ForeignModel(LanguageModel):
    """A causal language model of transformers, as `models.foreign.folder.open_foreign` reads it.

    Args:
        network: the transformers model; its adapted layers are replaced in place.
        source: where it came from, and which layers take adapters.

    """

    def __init__(self, network: nn.Module, source: Source) -> None:
        super().__init__()
        self.network, self.source = network, source
        for name in source.tensors:
            parent, _, child = name.rpartition(".")
            layer = ForeignLinear(network.get_submodule(name))
            setattr(network.get_submodule(parent), child, layer)
        self.requires_grad_(False)
        self.eval()

    @property
    def class_name(self) -> str:
        """Name of the transformers class."""
        return type(self.network).__name__

    @property
    def max_positions(self) -> int:
        """Longest sequence, in tokens; unbounded where the class names no limit."""
        return getattr(self._config, "max_position_embeddings", None) or sys.maxsize

    @property
    def experts_per_token(self) -> int:
        """See `LanguageModel.experts_per_token`."""
        return getattr(self._config, "num_experts_per_tok", None) or 1

    @property
    def attention_maps(self) -> int:
        """See `LanguageModel.attention_maps`: of classes that compute attention step by step."""
        if self._config._attn_implementation != "eager":
            return 0
        return int(self._config.num_attention_heads * self._config.num_hidden_layers)

    @property
    def _config(self) -> Any:
        network: Any = self.network
        return network.config.get_text_config(decoder=True)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model knows."""
        return vocab_size_of(self.network)

    def check_length(self, length: int) -> None:
        """Refuse lengths at which a sequence would feel the padding behind it.

        Some rotary embeddings change with the longest sequence of a batch (dynamic, longrope): the
        lengths of others would then move a sequence's gradient.
        """
        super().check_length(length)
        if sees_padding(self.network, length):
            raise ValueError(
                f"Expected a sequence length at which a {self.class_name} computes the same with "
                f"and without padding, got {length}. Lower the sequence length."
            )

    def describe(self) -> str:
        """Say in one line which linear layers take adapters, and why the others do not."""
        reasons = Counter(self.source.frozen.values()).items()
        without = "".join(f"; {count} without: {reason}" for reason, count in reasons)
        return f"{self.class_name}: adapters on {len(self.source.tensors)} linear layers{without}"

    def train(self, mode: bool = True) -> "ForeignModel":
        """Stay in evaluation mode: dropout stays off, and batch statistics stay fixed."""
        super().train(False)
        return self

    def forward(self, token_BT: Tensor) -> Tensor:
        """Return next-token logits [B, T, V]."""
        return logits_of(self.network, token_BT)

    def loss(self, token_BT: Tensor, target_BT: Tensor) -> SequenceLoss:
        """Return the cross-entropy of each sequence, in fp32 from the class's logits.

        No attention mask is given: padding is on the right, where causal attention lets no counted
        position see it.
        """
        logits_NV = self(token_BT).flatten(0, 1)
        nats_BT = nats_of_logits(logits_NV, target_BT.flatten(), IGNORED).view_as(target_BT)
        counted_B = (target_BT != IGNORED).sum(1)
        return SequenceLoss(nats_BT.sum(1), counted_B, nats_BT.new_zeros(len(token_BT)))

    def adapted_layers(self) -> Iterator[tuple[str, ForeignLinear]]:
        """Yield the layers that take adapters."""
        for name in self.source.tensors:
            layer = self.network.get_submodule(name)
            assert isinstance(layer, ForeignLinear)
            yield name, layer

    def train_in_full(self) -> None:
        """Refuse: a foreign class has layers whose gradients per unit are not recorded."""
        raise ValueError(
            f"Expected training.kind = 'lora' for a {self.class_name}, got 'full': only adapters "
            "of another class pass the operations that clip each unit's gradient exactly. Set "
            "training.kind = 'lora'."
        )
