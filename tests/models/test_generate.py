"""Generated text against transformers, against the model itself, and against its own batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from models.checkpoint import save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts import Activation
from models.generate import Completion, Finish, Settings, generate, stream
from models.pretrain import token_stream, warm_up
from models.sampling import Sampling
from models.tokenizer import Tokenizer
from models.training_settings import WarmUp

CONFIG = ModelConfig(
    vocab_size=320, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=96, initializer_range=0.2,
)  # fmt: skip
TEXTS = ["The patient was seen on ward seven.", "한국어 텍스트 🙂 und Zwölf Boxkämpfer.", "a b c d"]
PROMPTS = ["The patient", "한국", "", "a b", "The patient was seen on ward"]
SAMPLED = Settings(24, Sampling(temperature=0.8, top_k=50, top_p=0.95))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 320)


@pytest.fixture(scope="module")
def random_model() -> Decoder:
    return Decoder(CONFIG, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained_model(tokenizer: Tokenizer) -> Decoder:
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    settings = WarmUp(steps=60, batch=8, sequence_length=32, learning_rate=1e-2)
    warm_up(model, token_stream(tokenizer, TEXTS * 8), settings, torch.Generator().manual_seed(1))
    return model


@pytest.fixture(params=["random_model", "trained_model"])
def model(request: pytest.FixtureRequest) -> Decoder:
    return request.getfixturevalue(request.param)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers_token_for_token(
    model: Decoder, penalty: float, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(model, tokenizer, tmp_path / "m")
    peer = theirs(tmp_path / "m")
    settings = Settings(30, Sampling(repetition_penalty=penalty))
    ours = generate(model, tokenizer, PROMPTS, settings)
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([[tokenizer.begin_of_text_id, *tokenizer.encode([prompt])[0]]])
        out = peer.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False,
            repetition_penalty=penalty, eos_token_id=list(tokenizer.stop_ids), pad_token_id=0,
        )  # fmt: skip
        assert completion.tokens == tuple(out[0, ids.shape[1] :].tolist())
        assert completion.text == tokenizer.decode(completion.tokens)


def test_a_trained_model_says_what_it_learned(trained_model: Decoder, tokenizer: Tokenizer) -> None:
    found = generate(trained_model, tokenizer, ["The patient", "한국어"], Settings(60))
    assert [c.text for c in found] == [" was seen on ward seven.", TEXTS[1].removeprefix("한국어")]
    assert all(c.finish == Finish.END_OF_TEXT for c in found)
    assert all(c.tokens[-1] in tokenizer.stop_ids for c in found)


@pytest.mark.parametrize("activation", [Activation(), Activation(3, 0.4), Activation(1)])
def test_greedy_takes_the_likeliest_of_the_full_forward(
    model: Decoder, activation: Activation, tokenizer: Tokenizer
) -> None:
    settings = Settings(12, activation=activation)
    for prompt, completion in zip(
        PROMPTS, generate(model, tokenizer, PROMPTS, settings), strict=True
    ):
        ids = [tokenizer.begin_of_text_id, *tokenizer.encode([prompt])[0]]
        for token in completion.tokens:
            with torch.no_grad():
                assert int(model(torch.tensor([ids]), activation)[0, -1].argmax()) == token
            ids.append(token)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(30),
        SAMPLED,
        replace(SAMPLED, stop=("the", "\n"), activation=Activation(2, 0.5)),
        Settings(30, Sampling(repetition_penalty=1.5, temperature=1.0, min_p=0.05)),
    ],
)
def test_a_row_is_what_it_is_alone(
    model: Decoder, settings: Settings, tokenizer: Tokenizer
) -> None:
    together = generate(model, tokenizer, PROMPTS, settings, seeded())
    source = seeded()
    alone = [generate(model, tokenizer, [p], settings, source)[0] for p in PROMPTS]
    assert together == alone


def test_equal_prompts_are_drawn_differently_and_seeds_repeat(
    random_model: Decoder, tokenizer: Tokenizer
) -> None:
    first = generate(random_model, tokenizer, ["a"] * 3, SAMPLED, seeded())
    assert len({c.tokens for c in first}) == 3
    assert generate(random_model, tokenizer, ["a"] * 3, SAMPLED, seeded()) == first
    assert generate(random_model, tokenizer, ["a"] * 3, SAMPLED, seeded(8)) != first


@pytest.mark.parametrize(("other", "accepted"), [(1.0, True), (1.2, False)])
def test_first_tokens_follow_the_models_distribution(
    random_model: Decoder, tokenizer: Tokenizer, other: float, accepted: bool
) -> None:
    """Chi-squared of 4,000 first tokens against softmax(logits / T); another T is told apart."""
    settings = Settings(1, Sampling(temperature=other))
    found = generate(random_model, tokenizer, ["a b"] * 4_000, settings, seeded())
    counts = torch.bincount(torch.tensor([c.tokens[0] for c in found]), minlength=320)
    ids = torch.tensor([[tokenizer.begin_of_text_id, *tokenizer.encode(["a b"])[0]]])
    expected = 4_000 * random_model(ids)[0, -1].detach().double().softmax(-1)
    rare = expected < 5  # the test's approximation wants 5 of each: the rare ones count as one
    pooled = [torch.cat((x[~rare], x[rare].sum()[None])) for x in (counts, expected)]
    assert (stats.chisquare(*pooled).pvalue > 1e-3) == accepted


def test_a_stop_string_across_tokens_ends_the_text(
    trained_model: Decoder, tokenizer: Tokenizer
) -> None:
    stop = "n on ward s"
    assert len(tokenizer.encode([stop])[0]) > 2
    found = generate(trained_model, tokenizer, ["The patient"], Settings(60, stop=(stop, "xyz")))[0]
    assert (found.text, found.finish) == (" was see", Finish.STOP)


def test_streamed_pieces_make_up_the_completion(
    trained_model: Decoder, tokenizer: Tokenizer
) -> None:
    pieces = list(stream(trained_model, tokenizer, ["한국어", "The"], Settings(60, stop=("Box",))))
    whole = generate(trained_model, tokenizer, ["한국어", "The"], Settings(60, stop=("Box",)))
    for row, completion in enumerate(whole):
        own = [p for p in pieces if p.row == row]
        assert "".join(p.text for p in own) == completion.text
        assert [p.finish for p in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish == completion.finish
        assert all("\ufffd" not in p.text for p in own)
    assert whole[0] == Completion(" 텍스트 🙂 und Zwölf ", whole[0].tokens, Finish.STOP)


def test_a_character_that_is_cut_off_by_the_length_is_marked(
    trained_model: Decoder, tokenizer: Tokenizer
) -> None:
    texts = [generate(trained_model, tokenizer, ["한국어"], Settings(n))[0] for n in range(1, 40)]
    assert all(c.text == tokenizer.decode(c.tokens) for c in texts)
    assert any(c.text.endswith("\ufffd") for c in texts)


def test_length_ends_a_text(random_model: Decoder, tokenizer: Tokenizer) -> None:
    found = generate(random_model, tokenizer, ["a", "b c"], Settings(1))
    assert [(len(c.tokens), c.finish) for c in found] == [(1, Finish.LENGTH)] * 2


def test_everything_is_checked_before_work_starts(
    random_model: Decoder, tokenizer: Tokenizer
) -> None:
    """`stream` raises when it is called, not when its first piece is asked for."""
    for prompts, settings, text in (
        (["a"], Settings(95), r"at most 96 tokens .* 2 \+ 95 for prompt 1"),
        (["a", "a b " * 40], Settings(5), "for prompt 2"),
        (["a"], SAMPLED, "generator"),
    ):
        with pytest.raises(ValueError, match=text):
            stream(random_model, tokenizer, prompts, settings)
    for wrong in ({"max_new_tokens": 0}, {"stop": ("",)}):
        with pytest.raises(ValueError, match="Expected"):
            Settings(**wrong)
    small = Decoder(CONFIG.model_copy(update={"vocab_size": 300}), seeded())
    with pytest.raises(ValueError, match="at most 300 tokens"):
        stream(small, tokenizer, ["a"], Settings(4))
    assert generate(random_model, tokenizer, [], Settings()) == []
    assert len(generate(random_model, tokenizer, ["a"], Settings(94))[0].tokens) == 94
