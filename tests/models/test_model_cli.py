"""`arion model list` and `show`: what they print, and how a mistake ends."""

import json

from typer.testing import CliRunner

from arion.cli import app
from models.config import preset, preset_names
from models.counts import parameter_counts

RUNNER = CliRunner()


def test_list_names_every_preset_with_its_size() -> None:
    result = RUNNER.invoke(app, ["model", "list"])
    assert result.exit_code == 0
    for name in preset_names():
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == [name])
        assert f"{parameter_counts(preset(name)).total:,}" in line


def test_list_json_is_data() -> None:
    listed = json.loads(RUNNER.invoke(app, ["model", "list", "--json"]).stdout)
    assert [each["name"] for each in listed] == list(preset_names())
    assert all(each["active_parameters"] < each["parameters"] for each in listed)


def test_show_a_preset() -> None:
    shown = json.loads(RUNNER.invoke(app, ["model", "show", "arion-1.2-2b", "--json"]).stdout)
    counts = parameter_counts(preset("arion-1.2-2b"))
    assert shown["parameters"] == counts.total
    assert shown["weight_bytes"]["bf16"] == 2 * counts.total
    assert shown["expert_owners"] == {"public": 16}
    assert shown["config"]["kv_heads"] == 2
    text = RUNNER.invoke(app, ["model", "show", "arion-1.2-2b"]).stdout
    assert f"{counts.active:,} (25%)" in text
    assert "16 (public: 16), 2 per token" in text


def test_show_of_an_unknown_name_is_one_line() -> None:
    result = RUNNER.invoke(app, ["model", "show", "huge"])
    assert result.exit_code == 2
    assert "arion-1.0-1b" in result.stderr
    assert result.stderr.count("\n") == 1
