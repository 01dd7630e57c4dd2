"""Sampling against closed forms, transformers' processors, and the statistics of many draws."""

import pytest
import torch
from scipy import stats

from models.sampling import GREEDY, Sampling, distribution, draw, penalise

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0], [0.0, 3.0, 2.9, 0.1, 0.2, -0.5]])


def test_temperature_is_a_softmax() -> None:
    expected = (LOGITS / 0.7).softmax(-1)
    torch.testing.assert_close(distribution(LOGITS, Sampling(temperature=0.7)), expected)


def test_filters_keep_the_likeliest() -> None:
    prob = LOGITS.softmax(-1)
    top_k = distribution(LOGITS, Sampling(temperature=1.0, top_k=2))
    torch.testing.assert_close(top_k[0, :2], prob[0, :2] / prob[0, :2].sum())
    assert (top_k > 0).sum(-1).tolist() == [2, 2]
    # Row 0 has probabilities 0.57, 0.21, 0.13, ...: 0.57 + 0.21 reaches 0.7, not 0.8.
    top_p = [
        (distribution(LOGITS, Sampling(temperature=1.0, top_p=p))[0] > 0).sum().item()
        for p in (0.01, 0.5, 0.7, 0.8, 1.0)
    ]
    assert top_p == [1, 1, 2, 3, 6]
    min_p = distribution(LOGITS, Sampling(temperature=1.0, min_p=0.3))
    assert (min_p > 0).tolist()[0] == [True, True, False, False, False, False]
    assert (distribution(LOGITS, Sampling(temperature=1.0, min_p=1.0)) > 0).sum(-1).tolist() == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.3, 0.8, 4, 0.9, 0.1),
        Sampling(1.0, 1.7, None, 0.5, 0.0),
        Sampling(2.0, 0.5, 9, 1.0, 0.02),
        Sampling(1.0, 0.6, 40, 0.95, 0.0),
    ],
)
def test_all_together_equals_transformers(sampling: Sampling) -> None:
    processors = pytest.importorskip("transformers").generation.logits_process
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 30, generator=generator)
    ids = torch.randint(30, (5, 8), generator=generator)
    chain = [
        processors.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        processors.TemperatureLogitsWarper(sampling.temperature),
        processors.TopKLogitsWarper(sampling.top_k or 30),
        processors.TopPLogitsWarper(sampling.top_p),
        processors.MinPLogitsWarper(sampling.min_p),
    ]
    expected = logits
    for process in chain:
        expected = process(ids, expected)
    seen = torch.zeros(5, 30, dtype=torch.bool).scatter(1, ids, True)
    found = distribution(penalise(logits, seen, sampling.repetition_penalty), sampling)
    torch.testing.assert_close(found, expected.softmax(-1))


@pytest.mark.parametrize(("drawn_at", "accepted"), [(0.8, True), (0.9, False), (0.7, False)])
def test_draws_follow_the_distribution_and_no_other(drawn_at: float, accepted: bool) -> None:
    """Chi-squared over 20,000 draws; a temperature that is off by an eighth is told apart."""
    draws, generator = 20_000, torch.Generator().manual_seed(1)
    prob_V = distribution(LOGITS[:1], Sampling(temperature=drawn_at))
    token = draw(prob_V.expand(draws, -1), [generator] * draws)
    counts = torch.bincount(token, minlength=6)
    expected_V = distribution(LOGITS[:1], Sampling(temperature=0.8)).double()[0]
    p_value = stats.chisquare(counts, draws * expected_V / expected_V.sum()).pvalue
    assert (p_value > 1e-3) == accepted


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    prob = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(2_000, -1)
    token = draw(prob, [torch.Generator().manual_seed(2)] * 2_000)
    assert set(token.tolist()) == {1, 3}


def test_rows_draw_from_their_own_generators() -> None:
    prob = torch.full((3, 50), 0.02)
    seeds = [torch.Generator().manual_seed(s) for s in (4, 5, 4)]
    first, second, third = draw(prob, seeds).tolist()
    assert first == third != second
    assert draw(prob[:1], [torch.Generator().manual_seed(5)]).tolist() == [second]


def test_infinite_logits_are_no_trouble() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf]])
    prob = distribution(logits, Sampling(temperature=1.0, top_k=3, top_p=0.9))
    assert prob.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.5}, "repetition_penalty"),
        ({"top_k": 5}, "temperature above 0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Sampling(**changes)
    assert GREEDY.temperature == 0
