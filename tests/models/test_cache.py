"""Reading on from cached keys and values against reading everything at once."""

import pytest
import torch

from models.cache import KeyValueCache
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts import Activation
from models.lora import add_lora

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=32, layers=3, heads=4, kv_heads=2, head_dim=8, experts=5,
    experts_per_token=2, expert_hidden_size=24, max_positions=32, initializer_range=0.2,
)  # fmt: skip
ACTIVATIONS = [Activation(), Activation(3, 0.5), Activation(1)]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def read_in_steps(
    model: Decoder, token_BT: torch.Tensor, prompts: list[int], activation: Activation
) -> list[torch.Tensor]:
    """Hidden states of every row: its prompt at once, then token by token to the end."""
    steps = token_BT.shape[1] - max(prompts)
    cache = KeyValueCache(model.config, prompts, token_BT.shape[1], model.embedding)
    padded = token_BT[:, : max(prompts)].clone()
    for row, length in enumerate(prompts):
        padded[row, length:] = 0
    hidden = model.read_on(padded, cache, activation)
    found = [[hidden[row, :length]] for row, length in enumerate(prompts)]
    for step in range(steps):
        columns = torch.tensor(prompts)[:, None] + step
        hidden = model.read_on(token_BT.gather(1, columns), cache, activation)
        for row, states in enumerate(found):
            states.append(hidden[row])
    assert cache.lengths == tuple(length + steps for length in prompts)
    return [torch.cat(states) for states in found]


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 4}, {"kv_heads": 1}, {"qk_norm": "none"}])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("prompts", [[7], [9, 9, 9], [1, 12, 5, 11]])
@torch.inference_mode()
def test_reading_on_equals_reading_at_once(
    generator: torch.Generator, changes: dict[str, object], activation: Activation,
    prompts: list[int],
) -> None:  # fmt: skip
    model = Decoder(CONFIG.model_copy(update=changes), generator)
    token_BT = torch.randint(97, (len(prompts), 24), generator=generator)
    expected = model.hidden(token_BT, activation)[0] @ model.head.T
    for row, hidden in enumerate(read_in_steps(model, token_BT, prompts, activation)):
        logits = hidden @ model.head.T
        torch.testing.assert_close(logits, expected[row, : len(logits)], rtol=0, atol=1e-5)


def test_adapters_are_applied_to_what_is_read_on(generator: torch.Generator) -> None:
    model = Decoder(CONFIG, generator)
    add_lora(model, 4, 8.0, generator)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.1, generator=generator)
    token_BT = torch.randint(97, (1, 12), generator=generator)
    with torch.inference_mode():
        expected = model.hidden(token_BT)[0][0]
        found = read_in_steps(model, token_BT, [5], Activation())[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_rows_that_leave_do_not_change_the_others(generator: torch.Generator) -> None:
    model = Decoder(CONFIG, generator)
    token_BT = torch.randint(97, (3, 10), generator=generator)
    expected = model.hidden(token_BT)[0]
    cache = KeyValueCache(CONFIG, [9, 4, 7], 32, model.embedding)
    model.read_on(token_BT[:, :9], cache)
    cache.keep([2, 0])
    assert cache.lengths == (7, 9)
    hidden = model.read_on(token_BT[[2, 0], [7, 9]][:, None], cache)
    wanted = torch.stack((expected[2, 7:8], expected[0, 9:10]))
    torch.testing.assert_close(hidden, wanted, rtol=0, atol=1e-5)


def test_the_cache_is_as_large_as_said(generator: torch.Generator) -> None:
    cache = KeyValueCache(CONFIG, [3, 5], 20, Decoder(CONFIG, generator).embedding)
    pasts = cache.advance(5)
    assert len(pasts) == CONFIG.layers
    assert all(past.key_BKSF.shape == past.value_BKSF.shape == (2, 2, 20, 8) for past in pasts)


@pytest.mark.parametrize(
    ("lengths", "positions"), [([3], 33), ([], 8), ([0, 2], 8), ([9], 8)]
)  # fmt: skip
def test_impossible_caches_are_refused(lengths: list[int], positions: int) -> None:
    with pytest.raises(ValueError, match="Expected"):
        KeyValueCache(CONFIG, lengths, positions, torch.zeros(1))


def test_a_full_cache_and_a_wrong_step_are_refused(generator: torch.Generator) -> None:
    model = Decoder(CONFIG, generator)
    cache = KeyValueCache(CONFIG, [3], 4, model.embedding)
    with pytest.raises(ValueError, match="Expected 3 new positions"):
        model.read_on(torch.zeros(1, 2, dtype=torch.int64), cache)
    model.read_on(torch.zeros(1, 3, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="Expected 1 new"):
        model.read_on(torch.zeros(1, 2, dtype=torch.int64), cache)
    model.read_on(torch.zeros(1, 1, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="Allocate the cache"):
        model.read_on(torch.zeros(1, 1, dtype=torch.int64), cache)
