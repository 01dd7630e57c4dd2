"""What training, clipping, evaluation and a federation ask of a model, whatever its class.

Shapes: B sequences, T positions, V vocabulary, I inputs, O outputs, R LoRA rank.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

IGNORED = -100  # target value of positions that carry no loss (padding)


@dataclass(frozen=True)
class SequenceLoss:
    """Loss of each sequence by itself, so that nothing couples two sequences of a batch.

    Attributes:
        total_B: summed cross-entropy in nats. tokens_B: counted targets.
        router_B: balance and z loss of the sequence, 0 where not asked for.

    """

    total_B: Tensor
    tokens_B: Tensor
    router_B: Tensor


class AdaptedLayer(Protocol):
    """A linear map that takes a low-rank update: y = x W^T + scale x A^T B^T.

    Attributes:
        lora_A: [..., R, I] or None. lora_B: [..., O, R] or None. lora_scale: alpha / R.

    """

    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None
    lora_scale: float

    @property
    def weight(self) -> Tensor:
        """W, [..., O, I]: the parameter or a view of it, so that adapters can be merged in."""


class LanguageModel(nn.Module, ABC):
    """A causal language model whose loss couples no two sequences of a batch.

    Everything that is left trainable passes models.ops, where private training watches.
    """

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """Longest sequence, in tokens."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids that the model knows."""

    @property
    def experts_per_token(self) -> int:
        """Experts of a layer that a token passes; 1 where there are none."""
        return 1

    @property
    def attention_maps(self) -> int:
        """Maps of all pairs of positions that a sequence's backward pass keeps, over all layers."""
        return 0

    def check_length(self, length: int) -> None:
        """Refuse sequences of `length` tokens that the model cannot read.

        Raises:
            ValueError: longer than its positions.

        """
        if length > self.max_positions:
            raise ValueError(
                f"Expected sequences of at most {self.max_positions} tokens, the model's "
                f"positions, got {length}. Lower the sequence length, or choose a model with more."
            )

    @abstractmethod
    def forward(self, token_BT: Tensor) -> Tensor:
        """Return next-token logits [B, T, V]."""

    @abstractmethod
    def loss(self, token_BT: Tensor, target_BT: Tensor) -> SequenceLoss:
        """Return the loss of each sequence; targets equal to IGNORED do not count.

        Args:
            token_BT: int64 inputs in [0, V). target_BT: the next tokens, or IGNORED.

        """

    @abstractmethod
    def adapted_layers(self) -> Iterator[tuple[str, AdaptedLayer]]:
        """Yield the layers that take adapters, by name; never a router."""

    @abstractmethod
    def train_in_full(self) -> None:
        """Leave everything trainable that private training may touch.

        Raises:
            ValueError: this class trains through adapters only.

        """
