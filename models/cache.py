"""Keys and values of the positions that a decoder has read, in buffers allocated once.

Position p of a row lies in column p: the rows of a batch are padded on the right, so that each one
has the positions, keys and values that it would have alone, and reading a prompt needs no mask.

Shapes: B rows, T new positions, S positions there is room for, K key/value heads, F head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig


@dataclass(frozen=True)
class Columns:
    """Where one call's keys and values go, and what its queries may see.

    Attributes:
        end: columns from here on are empty in every row.
        position_B: the column that each row writes, int64; None while the prompts are read.
        same: every row writes the last column before `end`.
        mask_B11S: True where a row's column is written; None where all before `end` are.

    """

    end: int
    position_B: Tensor | None = None
    same: bool = True
    mask_B11S: Tensor | None = None


@dataclass(frozen=True)
class Past:
    """One layer's keys and values, [B, K, S, F] each, during one call."""

    key_BKSF: Tensor
    value_BKSF: Tensor
    columns: Columns

    def write(self, key_BKTF: Tensor, value_BKTF: Tensor) -> None:
        """Store the new positions' rotated keys, and their values."""
        for buffer_BKSF, new in ((self.key_BKSF, key_BKTF), (self.value_BKSF, value_BKTF)):
            self._write(buffer_BKSF, new)

    def read(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all columns that any row has written, as views."""
        end = self.columns.end
        return self.key_BKSF.narrow(2, 0, end), self.value_BKSF.narrow(2, 0, end)

    def _write(self, buffer_BKSF: Tensor, new_BKTF: Tensor) -> None:
        columns = self.columns
        if columns.same:
            count = new_BKTF.shape[2]
            buffer_BKSF.narrow(2, columns.end - count, count).copy_(new_BKTF)
        else:
            row_B = torch.arange(len(new_BKTF), device=new_BKTF.device)
            buffer_BKSF[row_B, :, columns.position_B] = new_BKTF.squeeze(2)


class KeyValueCache:
    """The keys and values of all layers, and how far each row has been read.

    The first call of the decoder reads the prompts, [B, longest prompt] padded on the right; every
    later call reads one token per row.

    Attributes:
        lengths: tokens of each row so far, its prompt included from the beginning.

    Args:
        config: of the decoder. lengths: tokens in each row's prompt. positions: S.
        like: a tensor of the decoder, for device and precision.

    Raises:
        ValueError: more positions than the decoder has; a prompt is empty or does not fit.

    """

    def __init__(
        self, config: ModelConfig, lengths: Sequence[int], positions: int, like: Tensor
    ) -> None:
        if positions > config.max_positions:
            raise ValueError(
                f"Expected room for at most {config.max_positions} positions, got {positions}. "
                "Shorten the text or choose a model with more positions."
            )
        if not lengths or min(lengths) < 1 or max(lengths) > positions:
            raise ValueError(
                f"Expected prompts of 1 to {positions} tokens, got {list(lengths)}. "
                "Make room for more positions or shorten the prompts."
            )
        self.lengths = tuple(lengths)
        self._prompts_read, self._room = False, positions
        shape = (len(lengths), config.kv_heads, positions, config.head_dim)
        # Zeros, not garbage: a masked column's value still takes part, as 0 x value.
        self._buffers = [
            (like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.layers)
        ]

    def advance(self, positions: int) -> list[Past]:
        """Take in the next `positions` positions; returns one `Past` per layer to write and read.

        Raises:
            ValueError: not the prompts first and one token per row after, or no room is left.

        """
        expected = 1 if self._prompts_read else max(self.lengths)
        if positions != expected or max(self.lengths) + self._prompts_read > self._room:
            raise ValueError(
                f"Expected {expected} new positions out of {self._room}, got {positions} after "
                f"{max(self.lengths)}. Allocate the cache for the whole text."
            )
        columns = self._next_token() if self._prompts_read else Columns(positions)
        self._prompts_read = True
        return [Past(key, value, columns) for key, value in self._buffers]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self.lengths = tuple(self.lengths[row] for row in rows)
        index_B = torch.tensor(rows, device=self._buffers[0][0].device)
        self._buffers = [
            (key.index_select(0, index_B), value.index_select(0, index_B))
            for key, value in self._buffers
        ]

    def _next_token(self) -> Columns:
        device = self._buffers[0][0].device
        position_B = torch.tensor(self.lengths, device=device)
        self.lengths = tuple(length + 1 for length in self.lengths)
        end = max(self.lengths)
        if min(self.lengths) == end:
            return Columns(end, position_B)
        mask_BS = torch.arange(end, device=device) <= position_B[:, None]
        return Columns(end, position_B, False, mask_BS[:, None, None])
