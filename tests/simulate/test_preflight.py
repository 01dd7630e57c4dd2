"""What a simulation looks at before any node reserves anything."""

from collections.abc import Callable
from pathlib import Path

import pytest

from arion import preflight
from arion.preflight import check_liveness
from arion.progress import Silent
from arion.run_file import RunFile
from arion.simulate import Simulation
from client.preflight import PreflightError
from models.decoder import Decoder
from models.training_settings import OptimiserSettings, Recipe

RECIPE = Recipe(sequence_length=32)
RATE = OptimiserSettings(learning_rate=2e-3)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_base_that_learns_passes(small_base: Path, kind: str) -> None:
    check_liveness(small_base, RECIPE.model_copy(update={"kind": kind}), RATE, 20)


def test_a_rate_that_diverges_stops_before_anything_is_spent(
    make_run: Callable[..., RunFile], tmp_path: Path
) -> None:
    run = make_run(training={"learning_rate": 50.0})
    with pytest.raises(PreflightError, match=r"Lower training\.learning_rate"):
        Simulation(run, tmp_path, Silent()).run()
    assert not list(tmp_path.rglob("entries.jsonl"))


def test_a_written_model_that_computes_something_else_is_noticed(
    small_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = preflight.write_merged_model

    def damaged(*arguments: object) -> Decoder:
        model = honest(*arguments)  # type: ignore[arg-type]
        assert isinstance(model, Decoder)
        model.norm.weight.data.mul_(1.1)
        return model

    monkeypatch.setattr(preflight, "write_merged_model", damaged)
    with pytest.raises(PreflightError, match="other logits"):
        check_liveness(small_base, RECIPE, RATE, 20)
