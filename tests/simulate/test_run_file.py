"""What a run file may not say, and where the mistake is: in the file, or in an option."""

from pathlib import Path
from typing import Any

import pytest

from arion.run_file import RunFileError, load_run_file

RANGE = "Input should be greater than or equal to 1"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {"training": {"rounds": -1}}, f"the options: training.rounds: {RANGE}, got -1."),
        (
            "[training]\nrounds = 0",
            {},
            f"run.toml: training.rounds: {RANGE}, got 0. Correct this key",
        ),
        ("[training]\nrounds = 0", {"privacy": {"epsilon": 3}}, "run.toml: training.rounds"),
        ("[training]\nrounds = 5", {"training": {"rounds": 0}}, "the options: training.rounds"),
        ("[training]\nruonds = 5", {}, "run.toml: training.ruonds: there is no such key"),
        ("[trainign]\nrounds = 5", {}, "run.toml: trainign: there is no such key"),
        ("seed = -1", {"": {}}, "run.toml: seed: Input should be greater than or equal to 0"),
        ("seed = 1", {"": {"seed": -1}}, "the options: seed"),
        ("seed = 1", {"data": {"unseen": ["a", 3]}}, "the options: data.unseen.1"),
        ("[data]\nunseen = [3]", {"data": {"heldout": 0.2}}, "run.toml: data.unseen.0"),
        ("seed = ", {}, "Expected a readable TOML file"),
    ],
)
def test_a_mistake_is_said_where_it_stands(
    text: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(RunFileError) as caught:
        load_run_file(path, options)
    assert str(caught.value).startswith(said)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run file at .*none\.toml, got no such file"):
        load_run_file(tmp_path / "none.toml", {})


def test_options_alone_are_to_blame_where_there_is_no_file() -> None:
    with pytest.raises(RunFileError, match=r"^the options: training\.rounds: .* got 0"):
        load_run_file(None, {"training": {"rounds": 0}})
