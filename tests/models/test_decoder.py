"""The decoder against transformers, its files, its tokenizer, and independence of examples."""

import json
from pathlib import Path

import pytest
import torch

from models.checkpoint import load_model, model_digest, save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.evaluate import evaluate, expert_shares
from models.formats.files import CheckpointError
from models.lora import add_lora, merge_lora
from models.pretrain import token_stream, warm_up
from models.tokenizer import Tokenizer, stack_rows
from models.training_settings import WarmUp

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
TEXTS = ["The patient was seen on ward seven.", "Zwölf Boxkämpfer 한국어 🙂\n\ttab", "a" * 300]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 300)


@pytest.fixture
def model() -> Decoder:
    return Decoder(CONFIG, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers_qwen3_moe(
    tied: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    ours = Decoder(config, torch.Generator().manual_seed(3))
    save_model(ours, tokenizer, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    token_BT = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(token_BT), theirs(token_BT).logits, rtol=0, atol=1e-4)


def test_transformers_reads_our_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs(text)["input_ids"] for text in TEXTS] == tokenizer.encode(TEXTS)


def test_folder_round_trip_is_exact(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(model, tokenizer, tmp_path / "m")
    loaded, again = load_model(tmp_path / "m")
    assert model_digest(loaded) == model_digest(model)
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: _truncate(f / "model.safetensors"), "damaged"),
        (lambda f: _edit(f, vocab_size=301), "shape"),
        (lambda f: _edit(f, num_experts=5, num_local_experts=5), "missing"),
        (lambda f: _edit(f, norm_topk_prob=False), "norm_topk_prob"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_damaged_folders_are_clear_errors(
    damage, text: str, model: Decoder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(model, tokenizer, tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ValueError, match=text):
        load_model(tmp_path / "m")


def test_a_model_with_nan_is_not_written(
    model: Decoder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model.norm.weight.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="finite"):
        save_model(model, tokenizer, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_one_sequence_does_not_feel_its_neighbours(model: Decoder) -> None:
    """The DP condition: loss and gradient of one example are the same in any batch."""
    generator = torch.Generator().manual_seed(2)
    token = torch.randint(0, 300, (5, 21), generator=generator)

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss = model.loss(rows[:, :-1], rows[:, 1:], balance=0.1, z=0.1)
        (loss.total_B[0] + loss.router_B[0]).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(token), gradient(token[:1]), rtol=1e-4, atol=1e-5)


def test_lora_starts_as_the_identity_and_merges(model: Decoder) -> None:
    token = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(4))
    before = model(token).detach()
    add_lora(model, 4, 8.0, torch.Generator().manual_seed(5))
    assert torch.equal(model(token), before)
    assert all(("lora" in n) == p.requires_grad for n, p in model.named_parameters())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    adapted = model(token).detach()
    merge_lora(model)
    torch.testing.assert_close(model(token), adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, before)


def test_rows_cover_the_text_once(tokenizer: Tokenizer) -> None:
    for text, rows in zip(TEXTS, tokenizer.rows(TEXTS, 16, 10_000), strict=True):
        targets = [t for row in rows for t in row.ids[1:]]
        assert targets[-1] == tokenizer.end_of_text_id
        assert tokenizer.decode(targets[:-1]) == text
        assert sum(row.target_bytes for row in rows) == len(text.encode())
        assert all(len(row.ids) <= 17 for row in rows)
    assert [len(rows) for rows in tokenizer.rows(TEXTS, 4, 2)] == [2, 2, 2]


def test_warm_up_learns_public_text_and_evaluation_sees_it(tokenizer: Tokenizer) -> None:
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    rows = [row for rows in tokenizer.rows(TEXTS, 32, 4) for row in rows]
    before = evaluate(model, rows)
    settings = WarmUp(steps=30, batch=4, sequence_length=32, learning_rate=1e-2)
    stream = token_stream(tokenizer, TEXTS * 4)
    warm_up(model, stream, settings, torch.Generator().manual_seed(1))
    after = evaluate(model, rows)
    assert after.nats_per_token < 0.7 * before.nats_per_token
    assert after.tokens == sum(len(row.ids) - 1 for row in rows)
    shares = expert_shares(model, rows, 32)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_evaluation_equals_plain_cross_entropy(model: Decoder, tokenizer: Tokenizer) -> None:
    rows = tokenizer.rows(TEXTS[:1], 64, 1)[0]
    token, target = stack_rows(rows, len(rows[0].ids) - 1)
    expected = torch.nn.functional.cross_entropy(model(token)[0], target[0])
    assert evaluate(model, rows).nats_per_token == pytest.approx(float(expected.detach()), rel=1e-5)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
