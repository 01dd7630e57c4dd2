"""Adding or removing one unit moves the clipped sums by at most 1.001 C: measured, unit by unit.

Draws are processed as at a node: cut into physical chunks of a fixed number of units with a zero
mask. Dropping a unit shifts every later unit into another place and chunk, so the measured change
holds the float32 errors of the whole sum, not only the dropped unit's.

The test also has to fail where clipping is wrong: implementations that leave a part of the gradient
out of the norm must move the sums by more than 1.001 C.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.decoder import Decoder
from models.owned import banks, branch
from privacy.dp import clipping
from privacy.dp.clipping import Chunk, add_clipped_gradients
from privacy.dp.grouped_records import GroupedRecord
from privacy.dp.records import EmbeddingRecord, LinearRecord, UnitLayout
from privacy.dp.sampling import physical_chunks
from tests.clipping import small

UNITS, CHUNK_UNITS, POSITIONS = 7, 3, 20
GENERATOR = torch.Generator().manual_seed(3)
TOKEN_US = torch.randint(0, 64, (UNITS, 2, POSITIONS + 1), generator=GENERATOR)


def build(variant: str) -> Decoder:
    model = small.build(variant)
    if variant == "owned":
        generator = torch.Generator().manual_seed(5)
        branch(model, (1, 3), train_rows=True)
        for bank in banks(model):
            for weight in bank.parameters():
                weight.data.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def chunk_of(indices: np.ndarray, present: np.ndarray, sequences: int) -> Chunk:
    token = TOKEN_US[torch.from_numpy(indices), :sequences].flatten(0, 1)
    unit_B = torch.arange(len(indices)).repeat_interleave(sequences)
    layout = UnitLayout(unit_B, len(indices))
    return Chunk(token[:, :-1], token[:, 1:], layout, torch.from_numpy(present))


def clipped_sum(
    model: Decoder, drawn: list[int], clip: float, sequences: int
) -> tuple[Tensor, list[float]]:
    """Return (all sums as one fp64 vector, the drawn units' norms before clipping)."""
    sums = small.zeros(model)
    norms: list[float] = []
    for indices, present in physical_chunks(np.array(drawn, dtype=np.int64), CHUNK_UNITS, 1):
        chunk = chunk_of(indices, present, sequences)
        norm_U = add_clipped_gradients(model, chunk, clip, sums).norm_U
        norms.extend(norm_U[chunk.present_U].tolist())
    return torch.cat([total.double().flatten() for total in sums.values()]), norms


def changes(model: Decoder, clip: float, sequences: int) -> list[float]:
    """For each unit: l2 change of the sums, in units of C, when it is dropped from the draw."""
    everyone = list(range(UNITS))
    whole, _ = clipped_sum(model, everyone, clip, sequences)
    rests = [[unit for unit in everyone if unit != gone] for gone in everyone]
    sums = [clipped_sum(model, rest, clip, sequences)[0] for rest in rests]
    return [float((whole - rest).norm()) / clip for rest in sums]


@pytest.mark.parametrize("variant", ["tied", "untied", "lora", "owned"])
@pytest.mark.parametrize("sequences", [1, 2], ids=["records", "patients"])
def test_dropping_a_unit_moves_the_sums_by_at_most_the_sensitivity(
    variant: str, sequences: int
) -> None:
    model = build(variant)
    _, norms = clipped_sum(model, list(range(UNITS)), 1.0, sequences)
    clip = float(np.median(norms)) * (1 + 1e-3)  # some units are clipped and some are not
    for change, norm in zip(changes(model, clip, sequences), norms, strict=True):
        assert change <= 1.001
        assert change >= 0.999 * min(1.0, norm / clip)


@pytest.mark.parametrize("clip", [1e-3, 1e-1])
def test_a_small_clipping_norm_is_kept_and_used_up_by_every_unit(clip: float) -> None:
    assert all(0.999 <= change <= 1.001 for change in changes(build("tied"), clip, 1))


@pytest.mark.parametrize("variant", ["tied", "lora"])
@pytest.mark.parametrize("record", [GroupedRecord, LinearRecord])
def test_a_layer_left_out_of_the_norm_is_noticed(
    variant: str, record: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip that skips experts (or linear maps) lets every unit exceed 1.001 C."""
    right = record.squared_norms
    monkeypatch.setattr(record, "squared_norms", lambda self: 0 * right(self))
    assert min(changes(build(variant), 1e-3, 1)) > 1.001


def test_an_embedding_left_out_of_the_norm_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = EmbeddingRecord.squared_norms
    monkeypatch.setattr(EmbeddingRecord, "squared_norms", lambda self: 0 * right(self))
    assert min(changes(build("untied"), 1e-3, 1)) > 1.001


def test_a_tied_table_clipped_as_two_tables_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the cross term of embedding and head the norm is wrong in one direction or other."""
    monkeypatch.setattr(clipping, "tied_cross_term", lambda embedding, _: torch.zeros(CHUNK_UNITS))
    wrong = changes(build("tied"), 1e-3, 1)
    assert max(abs(change - 1) for change in wrong) > 0.001


def test_a_loss_that_couples_the_units_of_a_chunk_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Positions weighted by the chunk's mean loss: each norm is exact, and the bound still fails.

    Dropping a unit changes the gradients of the others, which no clip of single units repairs.
    """

    def coupled(model: Decoder, chunk: Chunk) -> Tensor:
        nats_BT = F.cross_entropy(
            model(chunk.token_BT).transpose(1, 2), chunk.target_BT, reduction="none"
        )
        return (nats_BT * nats_BT.detach().mean(0)).mean(1)

    monkeypatch.setattr(clipping, "unit_losses", coupled)
    assert max(changes(build("tied"), 1e-3, 1)) > 1.001
