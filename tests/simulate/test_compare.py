"""The comparison's parts: what arms train on, how a rate is found, what is reported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from arion.arms import POOLED, Job, Setting, arm_losses, train, units_of
from arion.compare import Comparison, over_seeds, search_rate
from arion.corpus import open_corpus
from arion.evaluation import Evaluator
from arion.mechanism import choose_cohort, choose_recipe, choose_step, spare_releases
from arion.pretraining import at_most
from arion.progress import Silent
from arion.run_file import RunFile
from client.training import LocalTrainer, UnitRows
from models.checkpoint import load_model
from models.recipe import prepare
from models.training_settings import WarmUp
from models.vector import read_vector
from privacy.dp.accountant import epsilon_after

MakeRun = Callable[..., RunFile]


def setting_of(run: RunFile) -> Setting:
    assert run.data.path is not None
    corpus = open_corpus(run.data.path, run)
    base = Path(run.model.base)
    recipe = choose_recipe(run, corpus.unit, base)
    model, _ = load_model(base)
    prepare(model, recipe)
    cohort = choose_cohort(run.federation, len(corpus.shares))
    units = sum(len({r.unit for r in split.train}) for split in corpus.splits.values())
    step = choose_step(run, corpus.unit, units, cohort, len(read_vector(model)))
    return Setting(run, corpus, base, recipe, step)


@pytest.mark.parametrize("best", [0.5, 1.0, 2.0, 8.0, 0.125])
def test_the_rate_of_the_lowest_loss_is_found(best: float) -> None:
    tried: list[float] = []

    def loss_at(rate: float) -> float:
        tried.append(rate)
        return abs(torch.tensor(rate / best).log().item())

    assert search_rate(1.0, loss_at) == best
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize(("tokens", "steps"), [(10, 1), (64_000, 31), (10**7, 900)])
def test_a_warm_up_passes_over_little_text_once(tokens: int, steps: int) -> None:
    assert at_most(WarmUp(steps=900), tokens).steps == steps


def test_means_and_deviations_over_seeds() -> None:
    found = over_seeds([{"mean": 1.0, "a": 2.0}, {"mean": 3.0, "a": 2.0}])
    assert found["heldout_loss"] == {"mean": 2.0, "a": 2.0}
    assert found["heldout_loss_sd"] == pytest.approx({"mean": 2**0.5, "a": 0.0})


def test_the_budget_is_met_and_not_left_unused(make_run: MakeRun) -> None:
    setting = setting_of(make_run())
    model, _ = load_model(setting.base)
    prepare(model, setting.recipe)
    length = len(read_vector(model))
    spent = epsilon_after(setting.step, 3, 1e-5, vector_length=length, contributors=4)
    assert 7.9 < spent <= 8.0


def test_drop_outs_lower_n_min_and_keep_releases_in_reserve(make_run: MakeRun) -> None:
    run = make_run(federation={"drop": 0.1})
    cohort = choose_cohort(run.federation, 10)
    assert (cohort.n_min, spare_releases(run, cohort) >= 2) == (6, True)
    assert choose_cohort(make_run().federation, 10).n_min == 10
    assert spare_releases(make_run(), choose_cohort(make_run().federation, 10)) == 0


@pytest.mark.parametrize("arm", ["local", "local_dp", "central", "central_dp"])
def test_arms_train_and_repeat(arm: str, make_run: MakeRun, tmp_path: Path) -> None:
    setting = setting_of(make_run(training={"rounds": 1}))
    first = train(Job(arm, 1e-3, 0), setting, tmp_path)
    again = train(Job(arm, 1e-3, 0), setting, tmp_path)
    names = {POOLED} if arm.startswith("central") else set(setting.corpus.splits)
    assert set(first) == names
    assert all(torch.equal(first[name], again[name]) for name in names)


def test_arms_for_whole_institutions_add_up_their_clipped_gradients(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """One clipped gradient per institution: alone, pooled, and never more than C of each."""
    run = make_run(training={"rounds": 1}, privacy={"unit": "institution"})
    setting = setting_of(run)
    step = setting.step
    assert (step.unit, step.sampling_probability, step.expected_batch) == ("institution", 1.0, 4.0)
    model, _ = load_model(setting.base)
    prepare(model, setting.recipe)
    units = units_of(setting)
    drawn = np.arange(4)
    pooled = UnitRows(tuple(own.rows[0] for own in units.values()))
    trainer = LocalTrainer(model, pooled, setting.recipe, pad_draws=False)
    each = [trainer.clipped_sum(drawn[at : at + 1], step) for at in drawn]
    assert all(len(own) == 1 and len(own.rows[0]) > 30 for own in units.values())
    assert all(np.linalg.norm(one) <= 1.0001 * step.clipping_norm for one in each)
    assert np.allclose(trainer.clipped_sum(drawn, step), sum(each), atol=1e-6)
    for arm in ("local_dp", "central_dp"):
        found = train(Job(arm, 1e-3, 0), setting, tmp_path)
        assert all(bool(torch.isfinite(vector).all()) for vector in found.values())


def test_no_heldout_record_is_trained_on(make_run: MakeRun) -> None:
    corpus = setting_of(make_run()).corpus
    for split in corpus.splits.values():
        parts = [{r.unit for r in getattr(split, p)} for p in ("train", "validation", "heldout")]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]


def test_local_models_are_evaluated_at_home_and_away_on_average(make_run: MakeRun) -> None:
    setting = setting_of(make_run(data={"unseen": ["court"]}))
    evaluator = Evaluator(setting.base, setting.recipe, setting.corpus)
    model, _ = load_model(setting.base)
    prepare(model, setting.recipe)
    start = read_vector(model)
    generator = torch.Generator().manual_seed(0)
    vectors = {
        name: start + 0.05 * torch.randn(len(start), generator=generator)
        for name in setting.corpus.splits
    }
    found = arm_losses(evaluator, vectors, "heldout", 8)
    each = {name: evaluator.losses(vector, "heldout", 8) for name, vector in vectors.items()}
    assert found["bank"] == pytest.approx(each["bank"]["bank"])
    assert found["court"] == pytest.approx(sum(e["court"] for e in each.values()) / 3)


@pytest.mark.slow
def test_a_comparison_in_small(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(
        training={"rounds": 1, "expected_batch": 6.0},
        compare={"seeds": 2, "arms": ["federated_dp", "central_dp"]},
        data={"unseen": ["court"], "evaluate_each_round": 2},
    )
    report = Comparison(run, tmp_path / "out", Silent()).run()
    assert set(report["arms"]) == {"base", "federated_dp", "central_dp"}
    arm = report["arms"]["federated_dp"]
    assert set(arm["heldout_loss"]) == set(arm["heldout_loss_sd"])
    assert arm["seeds"] == 2
    assert report["epsilon"]["bank"] <= 8
    assert (tmp_path / "out/arms.svg").read_text().startswith("<svg")
