"""Expert modules on disk: exact round trip, and every way in which one can be wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import model_digest
from models.config import ModelConfig
from models.decoder import Decoder
from models.durable import file_digest
from models.expert_module import (
    NOT_PRIVATE,
    Facts,
    PrivacyClaim,
    card_path,
    modules_in,
    read_card,
    read_module,
    write_module,
)
from models.owned import OwnedError, banks, branch, owned_tensors

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
BASE = Decoder(CONFIG, torch.Generator().manual_seed(1))
DIGEST = model_digest(BASE)


def facts(**changes: object) -> Facts:
    return Facts(**{
        "owner": "north-clinic", "data": "Discharge letters.", "licence": "Research only.",
        "privacy": NOT_PRIVATE, "base_digest": DIGEST, "sources": (1, 3), "recipe": {"steps": 5},
        **changes,
    })  # fmt: skip


def branched() -> Decoder:
    model = Decoder(CONFIG, torch.Generator().manual_seed(1))
    branch(model, (1, 3), train_rows=True)
    for bank in banks(model):
        bank.down.weight.data.mul_(1.5)
    return model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_module(tmp_path, owned_tensors(branched()), facts())


def test_round_trip_is_exact_and_plain(weights: Path, tmp_path: Path) -> None:
    module = read_module(weights, CONFIG, DIGEST)
    expected = owned_tensors(branched())
    assert set(module.tensors) == set(expected)
    assert all(torch.equal(module.tensors[name], tensor) for name, tensor in expected.items())
    for bank, own in zip(module.banks(CONFIG), banks(branched()), strict=True):
        assert torch.equal(bank.gate_up.weight, own.gate_up.weight)
        assert torch.equal(bank.down.weight, own.down.weight)
        assert torch.equal(bank.router.weight, own.router.weight)
    assert weights == tmp_path / "north-clinic" / (file_digest(weights) + ".safetensors")
    assert list(modules_in(tmp_path)) == [weights]
    assert sorted(path.suffix for path in weights.parent.iterdir()) == [".json", ".safetensors"]
    assert json.loads(card_path(weights).read_text())["privacy"] == "not private"
    assert write_module(tmp_path, expected, facts()) == weights  # equal tensors, equal bytes


def test_a_privacy_claim_is_integers(tmp_path: Path) -> None:
    claim = PrivacyClaim(
        epsilon_micro=3_000_001, delta_1e15=10**9, unit="patient", accountant="PLD", ledger="head"
    )
    weights = write_module(tmp_path, owned_tensors(branched()), facts(privacy=claim))
    assert read_card(weights).privacy == claim
    for bad in ({"epsilon_micro": 3.5}, {"delta_1e15": -1}):
        with pytest.raises(ValueError, match="privacy"):
            facts(privacy={**claim.model_dump(), **bad})


@pytest.mark.parametrize(
    "changes",
    [{"owner": "public"}, {"owner": "North"}, {"owner": "a/b"}, {"owner": ""}, {"owner": "a" * 64},
     {"data": ""}, {"privacy": None}, {"privacy": "private"}, {"sources": ()},
     {"base_digest": "ab"}],
)  # fmt: skip
def test_impossible_facts_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        facts(**changes)


def _edit_card(weights: Path, **changes: object) -> None:
    path = card_path(weights)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_tensors(weights: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors and let the card follow, so that only the tensors are wrong."""
    tensors = {n: t for n, t in {**load_file(weights), **changes}.items() if t is not None}
    save_file(tensors, weights, metadata={"format": "pt"})
    _edit_card(weights, weights_digest=file_digest(weights))


def _replace(weights: Path, data: bytes) -> None:
    weights.write_bytes(data)
    _edit_card(weights, weights_digest=file_digest(weights))


GATE = "model.layers.0.mlp.gate.weight"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda w: card_path(w).unlink(), "card"),
        (lambda w: card_path(w).write_text("{"), "card"),
        (lambda w: _edit_card(w, surprise=1), "surprise"),
        (lambda w: _edit_card(w, format=2), "format"),
        (lambda w: _edit_card(w, owner="Ward 7"), "owner"),
        (lambda w: _edit_card(w, base_digest="0" * 64), "base"),
        (lambda w: _edit_card(w, sources=[1]), "surplus"),
        (lambda w: _edit_card(w, sources=[1, 4]), "sources"),
        (lambda w: w.unlink(), "got none"),
        (lambda w: w.write_bytes(w.read_bytes()[:-1]), "damaged"),
        (lambda w: _replace(w, b"x"), "safetensors"),
        (lambda w: _edit_tensors(w, extra=torch.zeros(1)), "surplus"),
        (lambda w: _edit_tensors(w, **{GATE: None}), "missing"),
        (lambda w: _edit_tensors(w, **{GATE: torch.zeros(3, 32)}), "fp32"),
        (lambda w: _edit_tensors(w, **{GATE: torch.zeros(2, 32, dtype=torch.float16)}), "fp32"),
        (lambda w: _edit_tensors(w, **{GATE: torch.full((2, 32), float("nan"))}), "NaN"),
        (lambda w: _edit_tensors(w, **{GATE: torch.zeros(2, 32)}), "tensors that the card"),
    ],
)  # fmt: skip
def test_a_wrong_module_is_a_clear_error(damage, text: str, weights: Path) -> None:
    damage(weights)
    with pytest.raises(OwnedError, match=text):
        read_module(weights, CONFIG, DIGEST)


def test_nothing_is_written_of_a_damaged_module(tmp_path: Path) -> None:
    model = branched()
    banks(model)[0].down.weight.data[0, 0, 0] = float("inf")
    with pytest.raises(OwnedError, match="finite"):
        write_module(tmp_path, owned_tensors(model), facts())
    assert not list(tmp_path.iterdir())


def test_a_module_without_its_card_is_not_there(weights: Path, tmp_path: Path) -> None:
    shutil.copy(weights, weights.with_name("0" * 64 + ".safetensors"))
    assert list(modules_in(tmp_path)) == [weights]
