"""`arion model expert train-private`, from a node's home to a composed model."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arion.cli import app
from tests.experts_release import Home, Make, train_command
from tests.small_federation import Ground

RUNNER = CliRunner()


@pytest.fixture
def node(make_home: Make, tmp_path: Path) -> Home:
    """A node with the system's entropy: the command runs in no simulation."""
    home = make_home(seed=None, allow_seeded_simulation=False)
    (tmp_path / "public.txt").write_text("\n".join(home.public))
    return home


def train(home: Home, **changes: Any) -> Result:
    return RUNNER.invoke(app, train_command(home, **changes))


def run(*words: object) -> Any:
    result = RUNNER.invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_from_a_home_to_a_composed_model(node: Home, ground: Ground, tmp_path: Path) -> None:
    result = train(node)
    assert result.exit_code == 0, result.output
    (weights,) = (node.path.parent / "out" / "north").glob("*.safetensors")
    assert str(weights) in result.stdout
    verdict = run("privacy", "ledger", "verify", node.path.parent)
    (ledger,) = verdict["ledgers"]
    assert (ledger["ok"], ledger["noise"]) == (True, "csprng")
    assert ledger["modules"] == [weights.stem]
    folder = tmp_path / "federation"
    run("model", "expert", "add", folder, weights, "--base", ground.base_model)
    listed = run("model", "expert", "list", folder)["modules"]
    assert listed[0]["privacy"]["epsilon_micro"] == ledger["epsilon_micro"] <= 8_000_000
    composed = run("model", "expert", "compose", folder, "--out", tmp_path / "composed")
    assert (composed["owners"], composed["experts"]) == (["north"], 5)


def test_the_command_again_charges_and_changes_nothing(node: Home) -> None:
    first, second = train(node), train(node)
    assert first.stdout == second.stdout
    assert len(node.bodies("run-reserved")) == len(node.bodies("experts-debited")) == 1


def test_a_refusal_is_one_line_that_names_the_clause(node: Home) -> None:
    node.write_consent(owned_experts_may_leave=False)
    result = train(node)
    assert result.exit_code == 2
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error:")]
    assert "See the clause 'owned_experts_may_leave'" in line
    assert not (node.path.parent / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -1}, "Expected a possible epsilon"),
        ({"rate": 1.5}, "Expected a possible sampling_probability"),
        ({"average-decay": 1}, "Expected a possible optimiser.average_decay"),
        ({"experts": 9}, "Expected sources between 0 and 3"),
        ({"sequence-length": 64}, "Expected sequence_length <= 32"),
        ({"public": "nowhere"}, "nowhere"),
    ],
)
def test_an_order_that_cannot_be_met_is_one_line(
    node: Home, changes: dict[str, Any], message: str
) -> None:
    result = train(node, **changes)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not node.bodies("run-reserved")


def test_a_seeded_node_is_refused_outside_a_simulation(node: Home) -> None:
    node.set_node(seed=3)
    node.write_consent(allow_seeded_simulation=True)
    result = train(node)
    assert result.exit_code == 2
    assert "got a seeded job on 'local'" in result.stderr
