"""Folders in vLLM, on the processor: run by the Python of an environment that has it.

    PYTHON -m tests.variants.vllm_worker JOB RESULTS

JOB is JSON: {"texts": [...], "folders": {LABEL: [PATH, DTYPE]}, "ids": [[...], ...]}. RESULTS.npz
holds "LABEL.logits.N" (fp32 [T, V]) and "LABEL.greedy.N" of each sequence; RESULTS.json token ids
of each text.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # else the ranks of logits are compiled, for a minute
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
POSITIONS, NEW_TOKENS = 128, 8


def main(job: Path, results: Path) -> None:
    """Run one job."""
    import torch  # noqa: PLC0415  (the environment is read on import)
    import vllm  # noqa: PLC0415

    if torch.cpu._is_amx_tile_supported():  # else its first short sequence ends by SIGILL
        torch.cpu._init_amx()
    asked = json.loads(job.read_text())
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    tokens = {}
    for label, (folder, dtype) in asked["folders"].items():
        model = vllm.LLM(
            model=folder, dtype=dtype, enforce_eager=True, max_model_len=POSITIONS,
            max_num_seqs=1, enable_prefix_caching=False, logprobs_mode="raw_logits",
            max_logprobs=-1,
        )  # fmt: skip
        words = model.get_tokenizer()
        tokens[label] = [words.encode(text, add_special_tokens=False) for text in asked["texts"]]
        for number, ids in enumerate(asked["ids"]):
            arrays[f"{label}.logits.{number}"] = logits(vllm, model, ids)
            arrays[f"{label}.greedy.{number}"] = np.array(greedy(vllm, model, ids))
        model.llm_engine.engine_core.shutdown()
        del model
    np.savez(results.with_suffix(".npz"), **arrays)
    results.with_suffix(".json").write_text(json.dumps({"vllm": vllm.__version__, **tokens}))


def logits(vllm: Any, model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """What is predicted after each token, fp32 [T, V]."""
    wanted = {"prompt_logprobs": -1, "logprobs": -1, "flat_logprobs": True}
    out = generate(vllm, model, ids, max_tokens=1, **wanted)
    found = np.full((len(ids), model.model_config.get_vocab_size()), np.nan, np.float32)
    parts = ((0, out.prompt_logprobs, 1), (len(ids) - 1, out.outputs[0].logprobs, 0))
    for first, flat, skipped in parts:  # nothing predicts the first token
        spans = list(zip(flat.start_indices, flat.end_indices, strict=True))[skipped:]
        for row, (start, end) in enumerate(spans, first):
            found[row, flat.token_ids[start:end]] = flat.logprobs[start:end]
    return found


def greedy(vllm: Any, model: Any, ids: list[int]) -> list[int]:
    """The likeliest tokens after a text."""
    return list(generate(vllm, model, ids, max_tokens=NEW_TOKENS).outputs[0].token_ids)


def generate(vllm: Any, model: Any, ids: list[int], **options: Any) -> Any:
    """Generate after one text."""
    params = vllm.SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **options)
    return model.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
