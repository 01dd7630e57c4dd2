"""Folders of four families become our decoder: logits against transformers on random models."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import checkpoint
from models.checkpoint import inspect_model, load_model, model_digest, save_model
from models.config import ModelConfig, RopeScaling
from models.decoder import Decoder
from models.formats.configs import read_config, write_config
from models.formats.families import FAMILIES, writing_family
from models.formats.files import CheckpointError
from models.formats.shards import read_tensors
from models.layers import Rotary
from models.tokenizer import Tokenizer
from tests.models.foreign_folders import LLAMA3, edit_config, make_folder
from tests.models.tokenizers import qwen

transformers = pytest.importorskip("transformers")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen3 tied, one key head": ("qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3 theta, no groups": ("qwen3", {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "num_key_value_heads": 4,
    }),
    "qwen3 scaled, sharded": ("qwen3", {"rope_parameters": LLAMA3, "shard": "20KB"}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe tied, narrow heads": ("qwen3_moe", {"tie_word_embeddings": True, "head_dim": 4}),
    "qwen3_moe one expert": ("qwen3_moe", {"num_experts": 1, "num_experts_per_tok": 1}),
    "qwen3_moe all experts, sharded": ("qwen3_moe", {"num_experts_per_tok": 4, "shard": "20KB"}),
    "llama": ("llama", {}),
    "llama tied, one key head": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama unscaled, wide heads": ("llama", {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "head_dim": 32,
    }),
    "llama sharded": ("llama", {"shard": "20KB", "rms_norm_eps": 1e-5}),
    "mixtral": ("mixtral", {}),
    "mixtral wide window, scaled": ("mixtral", {"sliding_window": 64, "rope_parameters": LLAMA3}),
    "mixtral tied, sharded": ("mixtral", {"tie_word_embeddings": True, "shard": "20KB"}),
}  # fmt: skip


def logits(model: Any) -> torch.Tensor:
    token_BT = torch.randint(0, 320, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(token_BT)
    return found if isinstance(found, torch.Tensor) else found.logits


def assert_same_function(ours: Any, theirs: Any) -> None:
    expected = logits(theirs)
    assert expected.std() > 0.5  # random weights that make a difference
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    kind, changes = CASES[case]
    theirs = make_folder(tmp_path, kind, **changes)
    assert ("sharded" in case) == (tmp_path / "model.safetensors.index.json").exists()
    ours, tokenizer = load_model(tmp_path)
    assert_same_function(ours, theirs)
    assert tokenizer.stop_ids == tuple(
        json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    )


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_of_it_is_the_same_function_to_transformers(
    case: str, tmp_path: Path
) -> None:
    kind, changes = CASES[case]
    theirs = make_folder(tmp_path / "in", kind, **changes)
    ours, tokenizer = load_model(tmp_path / "in")
    save_model(ours, tokenizer, tmp_path / "out")
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "who may read config.json may read the weights"
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(written) is type(theirs)
    assert_same_function(written, theirs)
    texts = ["Ward 7, 10:45.", "한국어 🙂"]
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read(texts)["input_ids"] == tokenizer.encode(texts)
    assert written.generation_config.eos_token_id == list(tokenizer.stop_ids)


@pytest.mark.parametrize("qk_norm", ["head", "none"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("experts", [1, 4])
def test_ours_to_transformers_and_back_is_exact(
    qk_norm: Any, scaled: bool, experts: int, tmp_path: Path
) -> None:
    ours = our_decoder(qk_norm, scaled, experts)
    qwen(tmp_path / "t")
    tokenizer = Tokenizer.load(tmp_path / "t")
    save_model(ours, tokenizer, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert_same_function(ours, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    qwen(tmp_path / "theirs")
    again, _ = load_model(tmp_path / "theirs")
    assert again.config == ours.config
    assert model_digest(again) == model_digest(ours)
    save_model(again, tokenizer, tmp_path / "again")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    ours = our_decoder("head", False)
    qwen(tmp_path / "t")
    tokenizer = Tokenizer.load(tmp_path / "t")
    told: list[tuple[int, int]] = []
    save_model(
        ours, tokenizer, tmp_path / "m", shard_bytes=20_000,
        advance=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 3
    assert not (tmp_path / "m" / "model.safetensors").exists()
    large = 320 * 32 * 4  # the embedding alone is over the limit
    assert all(path.stat().st_size < max(20_000, large) + 4_000 for path in shards)
    assert model_digest(load_model(tmp_path / "m")[0]) == model_digest(ours)
    assert told[-1][0] == told[-1][1]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert_same_function(ours, theirs)


def test_weights_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory holds one model: the last tensor is gone when the next but one is read."""
    make_folder(tmp_path, "llama", shard="20KB")
    seen: list[weakref.ref[torch.Tensor]] = []

    def watched(headers: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in read_tensors(headers):
            seen.append(weakref.ref(tensor))
            assert sum(each() is not None for each in seen) <= 2
            yield name, tensor

    monkeypatch.setattr(checkpoint, "read_tensors", watched)
    load_model(tmp_path)
    assert len(seen) > 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_to_fp32_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    make_folder(tmp_path, "llama", dtype=dtype)
    ours, _ = load_model(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert ours.embedding.dtype == torch.float32
    assert_same_function(ours, theirs.eval())


@pytest.mark.parametrize("scaled", [True, False])
def test_rotary_tables_are_transformers_bit_for_bit(scaled: bool) -> None:
    llama = transformers.models.llama
    rope = {**LLAMA3, "rope_theta": 500_000.0, "factor": 8.0}
    rope["original_max_position_embeddings"] = 8192
    plain = {"rope_type": "default", "rope_theta": 500_000.0}
    theirs = llama.modeling_llama.LlamaRotaryEmbedding(
        transformers.LlamaConfig(
            hidden_size=512, num_attention_heads=4, head_dim=128, max_position_embeddings=32_768,
            rope_parameters=rope if scaled else plain,
        )
    )  # fmt: skip
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )
    ours = Rotary(
        our_config("none", False).model_copy(
            update={
                "head_dim": 128, "max_positions": 32_768, "rope_theta": 500_000.0,
                "rope_scaling": scaling if scaled else None,
            }
        )
    )  # fmt: skip
    cos, sin = theirs(torch.zeros(1), torch.arange(32_768)[None])
    assert torch.equal(ours.cos_TF, cos[0])
    assert torch.equal(ours.sin_TF, sin[0])


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("spelling", ["oldest", "old", "new"])
def test_all_spellings_of_renamed_keys_are_read(kind: str, spelling: str, tmp_path: Path) -> None:
    theirs = make_folder(tmp_path, kind, rope_parameters=LLAMA3)
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    if spelling == "oldest":
        scaling["type"] = scaling.pop("rope_type")
    renamed = ("rope_parameters", "rope_theta", "num_experts", "num_local_experts")
    if spelling == "new":
        edit_config(tmp_path, renamed, rope_parameters=LLAMA3, num_local_experts=4)
    else:
        edit_config(tmp_path, renamed, rope_theta=10_000, rope_scaling=scaling, num_experts=4)
    assert_same_function(load_model(tmp_path)[0], theirs)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same_function(again, theirs)  # they read that spelling likewise


@pytest.mark.parametrize("place", ["beside", "nowhere"])
def test_positions_of_the_first_training_stand_where_transformers_looks(
    place: str, tmp_path: Path
) -> None:
    make_folder(tmp_path, "llama")
    rope = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
    beside = {"original_max_position_embeddings": 24} if place == "beside" else {}
    edit_config(tmp_path, rope_parameters=rope, **beside)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours, _ = load_model(tmp_path)
    assert ours.config.rope_scaling is not None
    assert ours.config.rope_scaling.original_max_positions == (24 if beside else 64)
    assert_same_function(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_a_missing_key_means_what_transformers_takes_it_to_mean(family: Any) -> None:
    config = transformers.AutoConfig.for_model(family.model_type)
    for key, value in family.defaults.items():
        theirs = config.rope_parameters[key] if key == "rope_theta" else getattr(config, key)
        assert theirs == value, key


@pytest.mark.parametrize("qk_norm", ["head", "none"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("experts", [1, 4])
def test_a_written_config_reads_as_itself(qk_norm: Any, scaled: bool, experts: int) -> None:
    config = our_config(qk_norm, scaled, experts)
    family = writing_family(config, dense=experts == 1)
    written = json.loads(json.dumps(write_config(config, family)))
    assert read_config(written) == (family, config)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_a_mixture_of_one_expert_is_dense_once_its_router_is_zero(
    kind: str, tmp_path: Path
) -> None:
    experts = {"num_experts" if kind == "qwen3_moe" else "num_local_experts": 1}
    theirs = make_folder(tmp_path / "in", kind, num_experts_per_tok=1, **experts)
    ours, tokenizer = load_model(tmp_path / "in")
    dense = {"qwen3_moe": "qwen3", "mixtral": "llama"}[kind]
    for name, family in (("as it was", kind), ("idle", dense)):
        save_model(ours, tokenizer, tmp_path / name)
        assert inspect_model(tmp_path / name).family.model_type == family
        again, _ = load_model(tmp_path / name)
        assert model_digest(again) == model_digest(ours)  # modules and runs name bases by it
        assert_same_function(again, theirs)
        ours.still_idle_routers()


def test_inspection_allocates_nothing_and_agrees(tmp_path: Path) -> None:
    make_folder(tmp_path, "llama", dtype=torch.bfloat16)
    found = inspect_model(tmp_path)
    assert found.family.model_type == "llama"
    assert found.config == load_model(tmp_path)[0].config
    assert {stored.type for stored in found.headers.values()} == {"BF16"}


def test_a_tied_head_in_the_file_has_to_be_the_embedding(tmp_path: Path) -> None:
    theirs = make_folder(tmp_path, "llama", tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": head}, path, {"format": "pt"})
    assert_same_function(load_model(tmp_path)[0], theirs)
    head[3, 3] += 1
    save_file({**tensors, "lm_head.weight": head}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_model(tmp_path)


def test_buffers_of_old_llama_folders_are_passed_over(tmp_path: Path) -> None:
    theirs = make_folder(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file({**load_file(path), **extra}, path, {"format": "pt"})
    assert_same_function(load_model(tmp_path)[0], theirs)


def our_config(qk_norm: Any, scaled: bool, experts: int = 4) -> ModelConfig:
    scaling = RopeScaling(
        factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16
    )
    return ModelConfig(
        vocab_size=320, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=16, experts=experts,
        experts_per_token=min(2, experts), expert_hidden_size=24, max_positions=64,
        rope_theta=50_000.0, rope_scaling=scaling if scaled else None, qk_norm=qk_norm,
        initializer_range=0.2,
    )  # fmt: skip


def our_decoder(qk_norm: Any, scaled: bool, experts: int = 4) -> Decoder:
    return Decoder(our_config(qk_norm, scaled, experts), torch.Generator().manual_seed(3))
