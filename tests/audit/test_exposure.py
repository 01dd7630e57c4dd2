"""Exposure against its definition; secrets that a model learned, and secrets that it never saw."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm, skew, skewnorm

from arion.audit_secrets import PlantedSecret, audit_secrets, load_secrets, plant
from client.data import DataConfig, read_shard
from client.entropy import Entropy
from models.folders import open_model
from privacy.audit.exposure import (
    exact_exposure,
    expected_when_unseen,
    fit_skew_normal,
    sampled_exposure,
)
from privacy.audit.one_run import AuditError

GENERATOR = np.random.default_rng(9)


def test_exposure_is_candidates_over_rank() -> None:
    others = np.arange(1.0, 16.0)  # with the secret, 16 candidates
    assert exact_exposure(0.5, others).bits == 4.0
    assert exact_exposure(2.5, others).bits == pytest.approx(math.log2(16 / 3))
    assert exact_exposure(99.0, others).bits == 0.0
    assert exact_exposure(2.0, others).bits == pytest.approx(math.log2(16 / 3))  # a tie is no win


def test_an_unseen_secret_has_the_mean_of_its_formula() -> None:
    """Every rank once, over all ranks."""
    ranks = np.arange(1, 101)
    assert expected_when_unseen(100) == pytest.approx(np.mean(np.log2(100 / ranks)))
    assert expected_when_unseen(10**6) == pytest.approx(1 / math.log(2), abs=1e-4)


def test_the_p_value_holds_for_unseen_secrets() -> None:
    """P[p <= a] <= a where the secret is drawn like all others."""
    drawn = GENERATOR.normal(size=(2000, 64))
    found = np.array([exact_exposure(row[0], row[1:]).p_value for row in drawn])
    for level in (0.05, 0.2):
        assert (found <= level).mean() == pytest.approx(level, abs=0.03)


def test_a_sample_tells_the_rank_and_a_fit_goes_beyond_it() -> None:
    sample = GENERATOR.normal(20, 2, 1000)
    found = sampled_exposure(10.0, sample, 10**9)
    assert found.bits == found.limit == pytest.approx(math.log2(1001))
    assert found.p_value == pytest.approx(1 / 1001)
    assert found.extrapolated == pytest.approx(-math.log2(norm.cdf(-5)), rel=0.25)
    common = sampled_exposure(20.0, sample, 10**9)
    assert common.bits == pytest.approx(1, abs=0.2)
    assert common.extrapolated == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("sample", [GENERATOR.gamma(9, size=500), -GENERATOR.gamma(9, size=500)])
def test_the_fit_has_the_samples_moments(sample: np.ndarray) -> None:
    mean, variance, skewness = skewnorm.stats(*fit_skew_normal(sample), moments="mvs")
    assert (mean, variance) == pytest.approx((sample.mean(), sample.var()))
    assert skewness == pytest.approx(skew(sample))


@pytest.mark.parametrize(
    "call",
    [
        lambda: exact_exposure(1.0, np.ones(0)),
        lambda: exact_exposure(math.nan, np.ones(3)),
        lambda: sampled_exposure(1.0, np.ones(5), 100),
        lambda: sampled_exposure(1.0, np.ones(20), 20),
    ],
)
def test_too_little_to_rank_is_refused(call) -> None:
    with pytest.raises(AuditError):
        call()


@pytest.mark.parametrize("tries", [1000, 300], ids=["exact", "sampled"])
def test_learned_secrets_are_exposed_and_others_are_not(learned, tries: int) -> None:
    model, tokenizer = open_model(learned.after)
    found = audit_secrets(
        model, tokenizer, [*learned.planted, *learned.never_planted], tries=tries,
        entropy=Entropy(2), trained_text=learned.members,
    )  # fmt: skip
    inside, outside = found[: len(learned.planted)], found[len(learned.planted) :]
    assert all(each.was_trained_on for each in inside)
    assert not any(each.was_trained_on for each in outside)
    assert {each.exposure.extrapolated is None for each in found} == {tries == 1000}
    assert min(each.exposure.bits for each in inside) > 5.0
    assert np.mean([each.exposure.bits for each in inside]) > 6.0
    assert np.mean([each.exposure.bits for each in outside]) < 4.0


def test_an_untouched_model_exposes_as_much_as_chance(learned) -> None:
    model, tokenizer = open_model(learned.before)
    found = audit_secrets(model, tokenizer, learned.planted, tries=1000, entropy=Entropy(2))
    assert np.mean([each.exposure.bits for each in found]) < 4.0
    assert {each.was_trained_on for each in found} == {None}


def test_other_candidates_differ_in_digits_alone() -> None:
    secret = PlantedSecret(prompt="p ", secret="4-7 (x1)")
    assert (secret.digits, secret.candidates) == (3, 1000)
    assert secret.filled("090") == "0-9 (x0)"


LAYOUT = DataConfig(
    text_fields=("question", "answer"),
    template="Q: {question}\nA: {answer}",
    unit_field="patient",
    group_field="patient",
)


def test_planted_records_have_the_shards_layout_and_hold_the_secrets(tmp_path: Path) -> None:
    records, listing = plant(LAYOUT, tmp_path / "out", count=3, repeats=2, entropy=Entropy(4))
    secrets = load_secrets(listing)
    found = read_shard(records, LAYOUT)
    assert [record.unit for record in found] == [s.unit for s in secrets for _ in range(2)]
    for record, each in zip(found, [s for s in secrets for _ in range(2)], strict=True):
        assert record.text == f"A: {each.prompt}{each.secret}."
    assert len({each.secret for each in secrets}) == 3
    with pytest.raises(AuditError, match="yet"):
        plant(LAYOUT, tmp_path / "out", count=3, repeats=2, entropy=Entropy(4))


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "no", '[{"prompt": "p", "secret": "none"}]', '[{"secret": "1234"}]', "[1234]"],
)
def test_a_secrets_file_that_is_none_is_refused_without_showing_it(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(content)
    with pytest.raises(AuditError) as caught:
        load_secrets(path)
    assert "1234" not in str(caught.value)


def test_secrets_of_the_invented_federation_are_read(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    entry = {"institution": "clinic", "unit": "p-1", "prompt": "x is ", "secret": "1-2-3",
             "records": ["a"]}  # fmt: skip
    path.write_text(json.dumps([entry]))
    (found,) = load_secrets(path)
    assert (found.institution, found.unit, found.digits) == ("clinic", "p-1", 3)
