"""Evaluation against brute force, windows that lose nothing, and independence of the batch."""

import math

import pytest
import torch

from models.config import ModelConfig
from models.decoder import Decoder
from models.evaluate import Evaluation, evaluate
from models.experts import Activation
from models.language_model import IGNORED
from models.tokenizer import Tokenizer, stack_rows

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
TEXTS = ["The patient was seen.", "Zwölf Boxkämpfer 한국어 🙂\n\ttab", "x", "a" * 90]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 300)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, torch.Generator().manual_seed(0))


def brute_force(
    model: Decoder, ids: list[int], length: int, overlap: int, activation: Activation
) -> list[float]:
    """Nats of every token after the first: one forward per token over what its window shows."""
    nats = []
    for target in range(1, len(ids)):
        begin, end = 0, length
        while target > end:
            begin, end = end - overlap, end - overlap + length
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin:target]]), activation)[0, -1].double()
        nats.append(float(logits.logsumexp(-1) - logits[ids[target]]))
    return nats


@pytest.mark.parametrize(("length", "overlap"), [(64, 0), (16, 0), (16, 5), (16, 15), (1, 0)])
@pytest.mark.parametrize("activation", [Activation(), Activation(3, 0.5)])
def test_evaluation_equals_brute_force(
    model: Decoder, tokenizer: Tokenizer, length: int, overlap: int, activation: Activation
) -> None:
    rows = tokenizer.rows(TEXTS[:2], length, None, overlap)
    found = evaluate(model, [row for each in rows for row in each], 3, activation)
    nats = []
    for encoded in tokenizer.encode(TEXTS[:2]):
        ids = [tokenizer.begin_of_text_id, *encoded, tokenizer.end_of_text_id]
        nats += brute_force(model, ids, length, overlap, activation)
    assert found.tokens == len(nats)
    assert found.nats == pytest.approx(sum(nats), rel=1e-5)
    assert found.nats_per_token == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    size = sum(len(text.encode()) for text in TEXTS[:2])
    assert found.text_bytes == size
    assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_batch_size_makes_no_difference(
    model: Decoder, tokenizer: Tokenizer, batch: int
) -> None:
    rows = [row for each in tokenizer.rows(TEXTS, 16, None, 4) for row in each]
    alone = [evaluate(model, [row], 1, Activation(3, 0.6)) for row in rows]
    found = evaluate(model, rows, batch, Activation(3, 0.6))
    assert found.nats == pytest.approx(sum(each.nats for each in alone), rel=1e-6)
    assert found.experts == pytest.approx(sum(each.experts for each in alone))
    assert found.tokens == sum(each.tokens for each in alone)


def test_mean_experts_count_what_targets_use(model: Decoder, tokenizer: Tokenizer) -> None:
    rows = tokenizer.rows(TEXTS[1:2], 16, None, 7)[0]
    assert evaluate(model, rows, 8).experts_per_token == 2
    assert evaluate(model, rows, 8, Activation(3)).experts_per_token == 3
    assert evaluate(model, rows, 8, Activation(4, 1.0)).experts_per_token == 1
    activation = Activation(4, 0.7)
    token_BT, target_BT = stack_rows(rows, 16)
    with torch.no_grad():
        routings = model.hidden(token_BT, activation)[1]
    used = [float(r.active()[target_BT != IGNORED].mean()) for r in routings]
    found = evaluate(model, rows, 8, activation).experts_per_token
    assert 1 < found < 4
    assert found == pytest.approx(sum(used) / 2, rel=1e-6)


@pytest.mark.parametrize(("length", "overlap"), [(7, 0), (7, 3), (7, 6), (1000, 10)])
def test_windows_count_every_token_once(tokenizer: Tokenizer, length: int, overlap: int) -> None:
    for text, rows in zip(TEXTS, tokenizer.rows(TEXTS, length, None, overlap), strict=True):
        counted = [t for row in rows for t in row.ids[1 + row.context :]]
        assert counted == [*tokenizer.encode([text])[0], tokenizer.end_of_text_id]
        assert all(len(row.ids) <= length + 1 for row in rows)
        assert [row.context for row in rows[1:]] == [overlap] * (len(rows) - 1)
        assert sum(row.target_bytes for row in rows) == len(text.encode())
        assert rows == tokenizer.rows([text], length, 10_000, overlap)[0]


def test_an_overlap_that_leaves_nothing_new_is_refused(tokenizer: Tokenizer) -> None:
    for overlap in (4, 5, -1):
        with pytest.raises(ValueError, match="overlap"):
            tokenizer.rows(TEXTS, 4, None, overlap)


def test_evaluations_add_up(model: Decoder, tokenizer: Tokenizer) -> None:
    parts = tokenizer.rows(TEXTS, 16, None)
    each = [evaluate(model, rows) for rows in parts]
    total = sum(each, Evaluation(0.0, 0, 0, 0.0))
    whole = evaluate(model, [row for rows in parts for row in rows])
    assert total.nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-6)
    assert (total.tokens, total.text_bytes) == (whole.tokens, whole.text_bytes)


def test_progress_is_told_and_hooks_are_gone(model: Decoder, tokenizer: Tokenizer) -> None:
    told: list[int] = []
    rows = [row for each in tokenizer.rows(TEXTS, 16, None) for row in each]
    evaluate(model, rows, 4, done=told.append)
    assert told == [*range(4, len(rows), 4), len(rows)]
    assert not any(module._forward_hooks for module in model.modules())


def test_no_rows_are_refused(model: Decoder) -> None:
    with pytest.raises(ValueError, match="Expected rows"):
        evaluate(model, [])
    assert Evaluation(1e6, 10, 1, 0.0).perplexity == math.inf
