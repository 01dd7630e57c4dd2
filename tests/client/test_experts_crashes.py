"""A node that dies at any step of training and releasing owned experts, and starts again.

Seeded, so that a training that went on can be compared with one that nothing disturbed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import client.experts_training
import client.module_outbox
import models.expert_module
from client.budget import NodeBooks
from client.experts_training import ExpertsTraining
from client.module_outbox import ModuleOutbox
from privacy.ledger.log import LedgerLog
from privacy.round_plan import PlanRefused
from tests.dying import dying
from tests.experts_release import Home, Make

TRAINING = client.experts_training
# (what dies, which call of it); the debit is the ledger's third entry, its head the second.
STEPS: dict[str, tuple[Any, str, int]] = {
    "reserve": (NodeBooks, "reserve_experts", 1),
    "embedding": (TRAINING, "release_embedding", 1),
    "rows saved": (TRAINING, "replace_durably", 1),
    "first step": (TRAINING, "adam_step", 1),
    "second step": (TRAINING, "adam_step", 2),
    "state saved": (TRAINING, "replace_durably", 2),
    "fourth step": (TRAINING, "adam_step", 4),
    "last step": (TRAINING, "adam_step", 6),
    "weights written": (models.expert_module, "put", 1),
    "card written": (models.expert_module, "write_whole", 1),
    "sealed": (ModuleOutbox, "seal", 1),
    "debit": (LedgerLog, "append", 3),
    "head": (LedgerLog, "sign_head", 2),
    "tidy": (ModuleOutbox, "forget_training", 1),
}
CRASHES = [(step, when) for step in STEPS for when in ("before", "after")]
CHARGED = CRASHES.index(("debit", "after"))
crashes = pytest.mark.parametrize(("step", "when"), CRASHES, ids=map(" ".join, CRASHES))


@pytest.fixture(autouse=True)
def _states_are_saved_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ExpertsTraining.__init__.__kwdefaults__, "save_every", 2)


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    """The digest of the undisturbed module, once it was trained."""
    return {}


@pytest.fixture
def undisturbed(make_home: Make, digests: dict[str, str]) -> str:
    if not digests:
        digests["module"] = make_home().train().digest
    return digests["module"]


def sealed_files(home: Home) -> list[Path]:
    return sorted(home.path.rglob("sealed/*/*.safetensors"))


def check_books(home: Home) -> None:
    """One reservation, one debit, and a ledger that agrees with every file."""
    assert len(home.bodies("run-reserved")) == 1
    assert len(home.bodies("experts-debited")) == 1
    assert not home.bodies("refusal")
    report = home.report()
    assert report.is_ok, report.failures


@crashes
def test_one_debit_and_one_module_per_job(
    make_home: Make, undisturbed: str, step: str, when: str
) -> None:
    home = make_home()
    owner, name, call = STEPS[step]
    with dying(owner, name, call, when):
        home.train()
    was_charged = CRASHES.index((step, when)) >= CHARGED
    debits = home.bodies("experts-debited")
    assert len(debits) == was_charged
    assert home.report().is_ok
    sealed = home.train()
    assert sealed.digest == undisturbed
    assert [body["sealed_digest"] for body in home.bodies("experts-debited")] == [sealed.digest]
    assert not was_charged or home.bodies("experts-debited") == debits
    sealed.publish(home.path.parent / "out")
    assert len(sealed_files(home)) == 1
    check_books(home)


@pytest.mark.parametrize(("step", "when"), CRASHES[: CHARGED + 1 : 3], ids=str)
def test_nothing_is_released_before_its_debit(make_home: Make, step: str, when: str) -> None:
    """Without a debit no sealed module is handed out, and what lies there is drawn anew."""
    home = make_home(seed=None, allow_seeded_simulation=False)
    owner, name, call = STEPS[step]
    with dying(owner, name, call, when):
        home.train(runtime="local")
    left = {path.stem for path in sealed_files(home)}
    debited = {body["sealed_digest"] for body in home.bodies("experts-debited")}
    assert debited <= left
    sealed = home.train(runtime="local")
    assert {path.stem for path in sealed_files(home)} == {sealed.digest}
    check_books(home)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_copy_that_was_cut_short_is_made_again(home: Home, call: int, when: str) -> None:
    sealed, out = home.train(), home.path.parent / "out"
    with dying(client.module_outbox, "put", call, when):
        sealed.publish(out)
    is_whole = (call, when) == (2, "after")
    assert len(list(out.rglob("*.json"))) == is_whole
    home.train().publish(out)
    assert sorted(path.suffix for path in (out / "north").iterdir()) == [".json", ".safetensors"]
    check_books(home)


def test_dying_again_and_again(home: Home, undisturbed: str) -> None:
    # Rows, reservation and earlier entries are there since the time before.
    for step, call in (("rows saved", 1), ("state saved", 1), ("card written", 1), ("head", 2)):
        owner, name, _ = STEPS[step]
        with dying(owner, name, call, "before" if step == "head" else "after"):
            home.train()
    assert home.train().digest == undisturbed
    check_books(home)


def test_a_job_changed_after_a_crash_is_another_release(home: Home, undisturbed: str) -> None:
    """Else an owner could look at what lies sealed, and try other settings on the data for free."""
    with dying(ModuleOutbox, "seal", when="after"):
        home.train()
    with pytest.raises(PlanRefused, match="got another mechanism or job"):
        home.train(gain=2.0)
    assert not home.bodies("experts-debited")
    assert home.train().digest == undisturbed
    assert len(home.bodies("run-reserved")) == len(home.bodies("experts-debited")) == 1
    assert home.report().is_ok


def sealed_parts(home: Home) -> Iterator[Path]:
    yield from home.path.glob("experts/*/sealed/*/*")


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])],
    ids=["gone", "cut"],
)
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_debited_module_that_was_damaged_is_not_trained_again(
    home: Home, damage: Callable[[Path], Any], suffix: str
) -> None:
    home.train()
    (path,) = (path for path in sealed_parts(home) if path.suffix == suffix)
    damage(path)
    with pytest.raises(PlanRefused, match="this one stays charged"):
        home.train()
    assert len(home.bodies("experts-debited")) == 1
    failures = home.report().failures
    assert all(failure.startswith("module ") for failure in failures)
    assert len(failures) == sum(1 for path in sealed_parts(home) if path.suffix == ".safetensors")
