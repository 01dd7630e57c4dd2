"""A node that dies, or whose disk fails, at every single operation on its files.

`test_gate_crashes.py` and `test_experts_crashes.py` die at named steps; here no list of steps is
kept, so that a write that someone adds is covered too.
"""

import contextlib
import itertools
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from arion.toml_file import write_toml
from client.config import CONSENT_FILE, load_node_config
from client.experts_order import make_job, public_tokens
from client.module_outbox import SealedModule
from client.node import Node
from models.checkpoint import load_model
from models.owned import branch, owned_tensors
from privacy.ledger.bundle import export_bundle
from privacy.ledger.files import read_lines
from privacy.ledger.pins import PINS_FILE, load_pins
from privacy.ledger.verify import verify_ledger
from tests.dying import Killed
from tests.experts_release import ORDER, Home
from tests.failing_disk import die, failing, fill_up
from tests.small_hands import Hands

FAILURES = pytest.mark.parametrize("fail", [die, fill_up], ids=["dies", "is full"])


def written(home: Path, kind: str) -> list[dict[str, Any]]:
    """Bodies of one kind in a node's ledger, of whole lines only."""
    lines = read_lines(home / "ledger" / "entries.jsonl").complete
    entries = [json.loads(line) for line in lines]
    return [entry["body"] for entry in entries if entry["kind"] == kind]


class Folder:
    """A home that can be put back to what it was."""

    def __init__(self, home: Path, copy: Path) -> None:
        self._home, self._copy = home, copy
        shutil.copytree(home, copy)

    def reset(self) -> None:
        shutil.rmtree(self._home)
        shutil.copytree(self._copy, self._home)


def each_operation(
    act: Callable[[], object], reset: Callable[[], None], fail: Callable[[], None]
) -> Iterator[str]:
    """Fail at each disk operation of `act` in turn, from the same start; yields its name."""
    for at in itertools.count():
        reset()
        with failing(at, fail) as seen, contextlib.suppress(Killed, OSError):
            act()
        if len(seen) <= at:
            return
        yield f"{at} {seen[at]}"


@FAILURES
@pytest.mark.parametrize(
    ("accountant", "opens"),
    [
        ("schedule", "run-reserved"),
        pytest.param("filter", "filter-opened", marks=pytest.mark.slow),
    ],
)
def test_an_upload_at_every_write(
    hands: Hands, tmp_path: Path, fail: Any, accountant: str, opens: str
) -> None:
    federation, plan = hands.federation, hands.plan()
    home = federation.homes.nodes["north"]
    consent = home / CONSENT_FILE
    write_toml(consent, tomllib.loads(consent.read_text()) | {"accountant": accountant})
    hands.reopen("north")
    folder, first_head = Folder(home, tmp_path / "pristine"), hands.heads["north"]
    pins = load_pins(federation.homes.root / PINS_FILE)
    hands.release("north", plan)
    seats = hands.nodes["north"]._seats  # model and data are only read
    hands.nodes["north"].close()
    operations = []

    def reset() -> None:
        hands.nodes["north"].close()
        folder.reset()
        hands.heads["north"] = first_head
        start()

    def start() -> None:
        hands.reopen("north")._seats = seats

    for operation in each_operation(lambda: hands.release("north", plan), reset, fail):
        operations.append(operation.split(" ", 1)[1])
        left = written(home, "release-debited")
        start()
        sealed = hands.release("north", plan)
        (debit,) = written(home, "release-debited")
        assert debit["sealed_digest"] == sealed.digest, operation
        assert left in ([], [debit]), operation
        assert len(written(home, opens)) == 1, operation
        assert (debit["charge"] is not None) == (accountant == "filter"), operation
        assert verify_ledger(home / "ledger", pins).is_ok, operation
    assert {"write", "half a write", "fsync", "replace", "claim_plan"} <= set(operations)
    assert len(operations) > 20


class Trained:
    """A training that came to its end, with other noise each time."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors, self._noise = tensors, itertools.count()

    def train(self) -> Mapping[str, Tensor]:
        noise = next(self._noise)
        return {name: tensor + noise for name, tensor in self._tensors.items()}


@FAILURES
def test_a_module_at_every_write(home: Home, tmp_path: Path, fail: Any) -> None:
    base, tokenizer = load_model(load_node_config(home.path).base_model)
    tokens = public_tokens(home.public, tokenizer, ORDER.sequence_length)
    node = Node(home.path, "simulate")
    job = make_job(ORDER, node.config, node.consent, base, tokens)
    node.close()
    branch(base, ORDER.sources, train_rows=False)
    trained = Trained(owned_tensors(base))
    folder, out = Folder(home.path, tmp_path / "pristine"), home.path.parent / "out"
    operations = []

    def reset() -> None:
        folder.reset()
        shutil.rmtree(out, ignore_errors=True)

    def release() -> SealedModule:
        node = Node(home.path, "simulate")
        try:
            sealed = node.release_experts(job, lambda _: trained)
        finally:
            node.close()
        sealed.publish(out)
        return sealed

    for operation in each_operation(release, reset, fail):
        operations.append(operation.split(" ", 1)[1])
        left = written(home.path, "experts-debited")
        published = list(out.glob("*/*.json"))
        assert len(published) <= len(left), operation
        sealed = release()
        (debit,) = written(home.path, "experts-debited")
        assert debit["sealed_digest"] == sealed.digest, operation
        assert left in ([], [debit]), operation
        assert len(written(home.path, "run-reserved")) == 1, operation
        assert len(list((home.path / "experts").rglob("*.safetensors"))) == 1, operation
        report = home.report()
        assert report.is_ok, (operation, report.failures)
    expected = {"write", "half a write", "fsync", "replace", "copyfile", "write_bytes"}
    assert expected <= set(operations)
    assert len(operations) > 25


@FAILURES
def test_a_bundle_at_every_write(hands: Hands, fail: Any) -> None:
    """A bundle is the old one or the new one, and never half of one."""
    hands.release("north", hands.plan())
    root = hands.federation.homes.root
    out = root.parent / "ledgers.bundle"
    export_bundle(root, out)
    old, operations = out.read_bytes(), []
    hands.release("north", hands.plan(2))
    export_bundle(root, out)
    new = out.read_bytes()
    assert old != new

    def reset() -> None:
        out.write_bytes(old)

    for operation in each_operation(lambda: export_bundle(root, out), reset, fail):
        operations.append(operation)
        assert out.read_bytes() in (old, new), operation
    assert len(operations) >= 5
