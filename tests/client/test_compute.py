"""A node's device and precision: what is refused, and that bf16 clips like fp32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.compute import check_default, place
from client.config import NODE_FILE, NodeConfig, NodeError, load_node_config
from client.data import Record
from client.training import LocalTrainer, unit_rows
from models.checkpoint import load_model
from models.foreign.model import ForeignModel
from models.recipe import prepare
from privacy.dp.plan import PrivateStep
from tests.small_federation import RECIPE, STEP, Ground

WORDS = ("left knee mild scan night cough dose stable pain ward " * 3).split()
SMALL = PrivateStep(**{**STEP.model_dump(), "clipping_norm": 0.05})


def config(home: Path, **settings: Any) -> NodeConfig:
    lines = ['name = "ward"', 'data = "shard"', 'base_model = "base"']
    lines += ["[fields]", 'text_fields = ["text"]']
    own = [f"{key} = {value}" for key, value in settings.items()]
    (home / NODE_FILE).write_text("\n".join([*own, *lines]))
    return load_node_config(home)


def test_bf16_without_fixed_shapes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="pad_draws = true"):
        config(tmp_path, precision='"bf16"', pad_draws="false")


def test_bf16_in_two_passes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="two_passes"):
        config(tmp_path, precision='"bf16"', two_passes="true")


def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device cpu"):
        config(tmp_path, device='"cuda"').device.check()
    config(tmp_path).device.check()


@pytest.mark.parametrize("setting", [{"device": '"cuda"'}, {"precision": '"bf16"'}], ids=str)
def test_owned_experts_train_with_the_defaults(tmp_path: Path, setting: dict[str, str]) -> None:
    with pytest.raises(NodeError, match="owned experts"):
        check_default(config(tmp_path, **setting))
    check_default(config(tmp_path))


def test_another_class_is_refused_in_bf16(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match='precision = "fp32"'):
        place(ForeignModel.__new__(ForeignModel), config(tmp_path, precision='"bf16"'))


@pytest.fixture
def sums(ground: Ground, tmp_path: Path) -> Callable[[str, list[int]], np.ndarray]:
    def clipped(precision: str, drawn: list[int]) -> np.ndarray:
        model, tokenizer = load_model(ground.base_model)
        prepare(model, RECIPE)
        place(model, config(tmp_path, precision=f'"{precision}"'))
        texts = [" ".join(WORDS[place:]) for place in range(8)]
        records = [Record(text, f"p{n}", f"p{n}", f"shard:{n}") for n, text in enumerate(texts)]
        trainer = LocalTrainer(model, unit_rows(records, tokenizer, RECIPE), RECIPE)
        return trainer.clipped_sum(np.array(drawn, np.int64), SMALL)

    return clipped


def test_bf16_sums_are_those_of_fp32_but_for_digits(
    sums: Callable[[str, list[int]], np.ndarray],
) -> None:
    exact, rough = sums("fp32", list(range(8))), sums("bf16", list(range(8)))
    assert rough.dtype == np.float32
    assert 1e-5 < np.linalg.norm(exact - rough) / np.linalg.norm(exact) < 0.1


def test_a_unit_keeps_to_the_clipping_norm_in_bf16(
    sums: Callable[[str, list[int]], np.ndarray],
) -> None:
    for unit in range(8):
        assert 0.9 * 0.05 <= np.linalg.norm(sums("bf16", [unit])) <= 1.001 * 0.05
