"""A verifier: weights against scipy, stopping against counting, its folder against damage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from models.effort.features import ALONE, NAMES, features, read
from models.effort.labelled import Labelled, Question, load_labelled
from models.effort.measure import measure
from models.effort.training import Trail, fit, fit_stopping, train_verifier
from models.effort.verifier import Verifier, load_verifier, save_verifier, standardised


def question(index: int, generator: torch.Generator) -> Question:
    """A sum, and four answers: right ones agree and compute well, wrong ones are off at random."""
    a, b = torch.randint(10, 90, (2,), generator=generator).tolist()
    prompt = f"Question {index}: Tom has {a} apples and buys {b}. How many has he?"
    hard = torch.rand(1, generator=generator).item()
    answers = []
    for source in "wxyz":
        correct = torch.rand(1, generator=generator).item() > hard * (1.2 if source < "z" else 0.6)
        off = 0 if correct else int(torch.randint(1, 30, (1,), generator=generator))
        text = f"He has {a}+{b} = <<{a}+{b}={a + b + off}>> apples.\nA: {a + b + off}"
        answers.append(Labelled(text, correct, source, read(prompt, text)))
    return Question(prompt, tuple(answers))


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    generator = torch.Generator().manual_seed(0)
    return [question(index, generator) for index in range(160)]


@pytest.fixture(scope="module")
def verifier(questions: list[Question]) -> Verifier:
    return train_verifier(questions[:80], torch.Generator().manual_seed(1), orders=1)


def test_weights_are_those_that_scipy_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    x_RF = torch.randn(200, 3, generator=generator).double()
    y_R = (x_RF[:, 0] + torch.randn(200, generator=generator).double() > 0.3).double()
    found = fit(x_RF, y_R, 0.05)
    z_RF = standardised(x_RF, found.mean_F, found.scale_F).numpy()

    def loss(w: np.ndarray) -> float:
        logit_R = z_RF @ w[:3] + w[3]
        fitted = np.logaddexp(0, logit_R) - y_R.numpy() * logit_R
        return float(fitted.mean() + 0.025 * (w[:3] ** 2).sum())

    best = minimize(loss, np.zeros(4), tol=1e-12).x
    assert np.allclose([*found.weight_F.tolist(), float(found.bias)], best, atol=1e-4)
    part, fewer = fit(x_RF, y_R, 0.05, first=1), fit(x_RF[:, 1:], y_R, 0.05)
    assert part.weight_F.tolist() == pytest.approx([0, *fewer.weight_F.tolist()], abs=1e-6)


def test_the_stopping_rule_spends_the_share_as_counting_says() -> None:
    generator = torch.Generator().manual_seed(0)
    best_PM = torch.rand(100, 3, generator=generator).double()
    right_PM = (torch.rand(100, 3, generator=generator) < best_PM).double()
    bytes_PM = torch.rand(100, 3, generator=generator).double().cumsum(1)
    trail = Trail(best_PM, right_PM, bytes_PM, torch.zeros(100))

    def played(power: int, level: float) -> tuple[float, float]:
        right = spent = 0.0
        for best, correct, cost in zip(best_PM, right_PM, bytes_PM, strict=True):
            n = next((n for n in (0, 1) if (1 - best[n]) * best[n] ** power <= level), 2)
            right, spent = right + float(correct[n]), spent + float(cost[n])
        return right / 100, spent / float(bytes_PM[:, -1].sum())

    for share in (0.5, 0.6, 0.8):
        rule = fit_stopping(trail, share)
        right, spent = played(rule.power, rule.level)
        tried = [
            [played(power, level) for level in torch.linspace(0, 1, 200).tolist()]
            for power in (0, 1)
        ]
        most = [max((s, r) for r, s in row if s <= share) for row in tried]
        # Levels are hundredths of what was seen: a little less is spent than could be.
        assert most[rule.power][0] - 0.02 <= spent <= share
        assert right >= most[1 - rule.power][1] - 0.02
    cheapest = fit_stopping(trail, 0.01)
    assert all(float(cheapest.worth(best)) <= cheapest.level for best in best_PM[:, 0])


def test_a_further_draw_is_worth_something_until_the_rule_says_enough(verifier: Verifier) -> None:
    rule = verifier.card.stopping
    for best in (0.05, 0.3, 0.6, 0.95):
        worth = (1 - best) * best**rule.power
        expected = worth if worth > rule.level else 0.0
        assert verifier.gain([best, 0.01]) == pytest.approx(expected)
    assert verifier.gain([0.3] * verifier.most) == 0


def test_content_is_left_out_where_it_only_misleads(questions: list[Question]) -> None:
    # Every answer's content says the same; what is right is what two agree on.
    generator = torch.Generator().manual_seed(3)

    def agreed(index: int) -> Question:
        noise = torch.randint(1, 10**6, (4,), generator=generator).tolist()
        texts = [f"It is {noise[0]}", f"It is {noise[0]}", f"It is {noise[1]}", f"It is {noise[2]}"]
        answers = (Labelled(t, n < 2, "", read("How many?", t)) for n, t in enumerate(texts))
        return Question(f"How many? ({index})", tuple(answers))

    made = [agreed(index) for index in range(60)]
    chosen = train_verifier(made, torch.Generator().manual_seed(0), orders=1)
    assert not chosen.card.content
    assert chosen.scorer.weight_F[:ALONE].abs().max() == 0
    helpful = train_verifier(questions[:80], torch.Generator().manual_seed(1), orders=1)
    assert helpful.card.content


def test_features_of_an_answer_do_not_depend_on_the_order_of_the_others() -> None:
    reads = [read("2 and 3?", text) for text in ("A: 5", "<<2+3=5>>\nA: 5", "A: 6", "")]
    x_NF, turned_NF = features(reads), features([reads[0], *reads[:0:-1]])
    assert torch.equal(x_NF[0], turned_NF[0])
    assert x_NF.shape == (4, len(NAMES))
    assert x_NF[:, NAMES.index("alike_1")].tolist() == [1, 1, 0, 0]


def test_a_verifier_chooses_better_than_chance_and_auto_draws_less(
    verifier: Verifier, questions: list[Question]
) -> None:
    found = measure(verifier, questions[80:], torch.Generator().manual_seed(2), len)
    assert found.first_Q.mean() + 0.1 < found.fixed_Q.mean() <= found.oracle_Q.mean()
    assert found.auto_Q.mean() > found.fixed_Q.mean() - 0.05
    assert found.auto_cost_Q.sum() < 0.9 * found.cost_Q.sum()


def test_by_source_the_best_is_drawn_first_and_strangers_are_refused(
    questions: list[Question],
) -> None:
    found = train_verifier(questions[:80], torch.Generator().manual_seed(1), by_source=True)
    assert found.card.sources[0] == "z"
    first_Q = measure(found, questions[80:], torch.Generator().manual_seed(2), len).first_Q
    assert first_Q.tolist() == [q.answers[3].correct for q in questions[80:]]
    with pytest.raises(ValueError, match="that does not ask who wrote an answer"):
        found.scores("", ["A: 1"])
    alien = Question("q", (Labelled("A: 1", True, "alien", read("q", "A: 1")),))
    with pytest.raises(ValueError, match="got one of alien"):
        measure(found, [alien], torch.Generator(), len)


def test_a_folder_gives_the_verifier_back_and_damage_is_refused(
    verifier: Verifier, tmp_path: Path
) -> None:
    save_verifier(verifier, tmp_path / "v")
    answers = ["2+3 = <<2+3=5>>\nA: 5", "A: 6"]
    # Where tensors lie in memory changes the order of a sum, and so its last bit.
    expected = pytest.approx(verifier.scores("2, 3?", answers), rel=1e-12)
    assert load_verifier(tmp_path / "v").scores("2, 3?", answers) == expected
    with pytest.raises(ValueError, match="Choose another --out"):
        save_verifier(verifier, tmp_path / "v")
    weights = tmp_path / "v" / "verifier.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="Expected the weights that"):
        load_verifier(tmp_path / "v")
    weights.write_bytes(whole)
    card = tmp_path / "v" / "verifier.json"
    good = json.loads(card.read_text())
    card.write_text(json.dumps(good | {"features": ["other"]}))
    with pytest.raises(ValueError, match="Train it again"):
        load_verifier(tmp_path / "v")
    del good["stopping"]  # as an earlier version wrote it
    card.write_text(json.dumps(good | {"version": 1}))
    with pytest.raises(ValueError, match="train it again if it is of an earlier version"):
        load_verifier(tmp_path / "v")
    with pytest.raises(ValueError, match="Expected a verifier at"):
        load_verifier(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "q", "solutions": [{"solution": "s", "correct": 1}]}', ":1: Expected"),
        ('{"question": "q", "solutions": []}', ":1: Expected at least one solution"),
        ("", "got no question"),
        ("no json", ":1: Expected"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_labelled(tmp_path / "a.jsonl")
