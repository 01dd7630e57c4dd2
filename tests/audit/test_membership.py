"""Membership figures against brute force; attacks on a model that learned by heart, and on none."""

import numpy as np
import pytest
from scipy.stats import binomtest

from arion.audit_membership import RATES, MembershipAudit, Suspects, audit_membership, unit_nats
from client.data import Record
from client.training import UnitRows, unit_rows
from models.folders import open_model
from models.tokenizer import stack_rows
from models.training_settings import Recipe
from privacy.audit.membership import (
    auc,
    clopper_pearson,
    rmia_ratios,
    rmia_scores,
    roc,
    tpr_at_fpr,
)
from privacy.audit.one_run import AuditError

RECIPE = Recipe(sequence_length=64, sequences_per_unit=2)
GENERATOR = np.random.default_rng(4)


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Rounded, so that there are ties."""
    return np.round(GENERATOR.normal(0.4, 1, 70), 1), np.round(GENERATOR.normal(0, 1, 130), 1)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    members, others = scores()
    pairs = [(a > b) + (a == b) / 2 for a in members for b in others]
    assert auc(members, others, 0.95).value == pytest.approx(np.mean(pairs))


def test_the_interval_of_auc_covers_as_often_as_it_says() -> None:
    """Normal scores one apart: the true area is P[N(1, 2) > 0] = 0.7602."""
    hits = 0
    for _ in range(300):
        found = auc(GENERATOR.normal(1, 1, 60), GENERATOR.normal(0, 1, 90), 0.9)
        hits += found.low <= 0.7602 <= found.high
    assert 0.85 < hits / 300 < 0.95


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_tpr_is_the_best_of_all_thresholds_within_the_rate(rate: float) -> None:
    members, others = scores()
    best = max(
        (members > threshold).mean()
        for threshold in np.concatenate([members, others, [-9.0]])
        if (others > threshold).mean() <= rate
    )
    found = tpr_at_fpr(members, others, rate, 0.95)
    assert found.tpr.value == best
    assert found.fpr.value <= rate
    assert found.is_measurable


def test_too_few_others_leave_a_low_rate_unmeasurable() -> None:
    members, others = scores()
    found = tpr_at_fpr(members, others, 0.001, 0.95)
    assert (found.is_measurable, found.needed, found.fpr.count) == (False, 1000, 0)
    assert found.fpr.high > 0.02  # none of 130 accused tells little
    assert tpr_at_fpr(members, np.arange(1000.0), 0.001, 0.95).is_measurable


@pytest.mark.parametrize(("count", "total"), [(0, 9), (3, 40), (40, 40)])
def test_the_interval_is_clopper_and_pearsons(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(0.9, "exact")
    found = clopper_pearson(count, total, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_curve_passes_every_threshold() -> None:
    members, others = scores()
    fpr, tpr = roc(members, others)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    at = 0.7
    point = ((others >= at).mean(), (members >= at).mean())
    assert any(point == pytest.approx(each) for each in zip(fpr, tpr, strict=True))
    area = np.trapezoid(tpr, fpr)
    assert area == pytest.approx(auc(members, others, 0.95).value)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_rmia_is_its_definition(gamma: float, scale: float) -> None:
    """Pair by pair, on probabilities; ties of the share are broken by less than one member."""
    nats, references = GENERATOR.uniform(1, 5, 30), GENERATOR.uniform(1, 5, (2, 30))
    marginal = ((1 + scale) * np.exp(-references).mean(0) + 1 - scale) / 2
    ratio = np.exp(-nats) / marginal
    shares = np.array([[a / b >= gamma for b in ratio[10:]] for a in ratio]).mean(1)
    found = rmia_ratios(nats, references, scale)
    np.testing.assert_allclose(np.exp(found), ratio)
    score = rmia_scores(found, found[10:], gamma)
    np.testing.assert_array_equal(np.floor(score * 20 + 1e-9), np.rint(shares * 20))
    assert (np.argsort(score) == np.argsort(ratio)).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: auc(np.array([1.0]), np.arange(3.0), 0.9),
        lambda: tpr_at_fpr(np.arange(3.0), np.array([np.nan]), 0.1, 0.9),
        lambda: tpr_at_fpr(np.arange(3.0), np.arange(3.0), 1.5, 0.9),
        lambda: rmia_ratios(np.ones(3), np.ones((0, 3))),
        lambda: rmia_scores(np.ones(3), np.ones(0)),
        lambda: clopper_pearson(4, 3, 0.9),
    ],
)
def test_what_cannot_be_measured_is_refused(call) -> None:
    with pytest.raises(AuditError):
        call()


def units(model_folder, texts) -> UnitRows:
    _, tokenizer = open_model(model_folder)
    records = [Record(text, f"{at:03d}", text, f"f:{at}") for at, text in enumerate(texts)]
    return unit_rows(records, tokenizer, RECIPE)


def attacked(learned, folder) -> MembershipAudit:
    suspects = Suspects("clinic", units(folder, learned.members), units(folder, learned.others))
    model, reference = open_model(folder)[0], open_model(learned.before)[0]
    (found,) = audit_membership(model, [reference], [suspects], 0.95)
    return found


def test_a_model_that_learned_by_heart_gives_its_members_away(learned) -> None:
    found = attacked(learned, learned.after)
    assert (found.members, found.others) == (len(learned.members), len(learned.others))
    assert [result.attack for result in found.attacks] == ["loss", "rmia"]
    for result in found.attacks:
        assert result.auc.low > 0.6
        assert [at.rate for at in result.tprs] == list(RATES)
        assert not any(at.is_measurable for at in result.tprs)  # 64 others


def test_an_untouched_model_tells_nobody(learned) -> None:
    loss, rmia = attacked(learned, learned.before).attacks
    assert loss.auc.low < 0.5 < loss.auc.high
    assert rmia.auc.value == 0.5  # its own reference: every ratio is 1


def test_institutions_are_also_pooled_and_share_the_confidence(learned) -> None:
    model = open_model(learned.after)[0]
    half = [
        Suspects(
            name,
            units(learned.after, learned.members[cut]),
            units(learned.after, learned.others[cut]),
        )
        for name, cut in (("a", slice(None, 30)), ("b", slice(30, None)))
    ]
    first, second, pooled = audit_membership(model, [], half, 0.95)
    assert [first.name, second.name] == ["a", "b"]
    assert pooled.members == first.members + second.members == len(learned.members)
    (alone,) = attacked(learned, learned.after).attacks[:1]
    assert pooled.attacks[0].auc.value == alone.auc.value
    assert pooled.attacks[0].auc.low < alone.auc.low  # fewer were tried there


def test_units_are_weighed_as_in_training(learned) -> None:
    """Mean over all tokens of a unit's sequences, each counted by itself."""
    model, tokenizer = open_model(learned.after)
    long, short = tokenizer.rows([learned.others[0] * 5, learned.others[1]], 40, 2)
    found = unit_nats(model, UnitRows((tuple(long), tuple(short))))
    for unit, value in zip((long, short), found, strict=True):
        losses = [model.loss(*stack_rows([row], len(row.ids) - 1)) for row in unit]
        total = sum(each.total_B.item() for each in losses)
        assert value == pytest.approx(total / sum(each.tokens_B.item() for each in losses))
