"""GGUF files: llama.cpp computes what the parent computes, from the tokens it makes itself."""

from pathlib import Path

import pytest
import torch

from models.config import RopeScaling
from models.decoder import Decoder
from models.tokenizer import Tokenizer
from models.variants import gguf_file
from models.variants.extras import VariantError
from models.variants.gguf_file import write_gguf
from models.variants.gguf_read import read_gguf
from models.variants.gguf_tensors import is_matrix, tensors
from models.variants.gguf_tokenizer import vocabulary
from models.variants.gguf_types import GGUF_FORMATS, LARGEST_ERROR, type_bytes, type_of
from models.variants.llama_runtime import LlamaRuntime
from tests.models import tokenizers as imported
from tests.variants.models import SHAPES, TEXTS, decoder, named_tokenizer, tokenizer

gguf = pytest.importorskip("gguf")

_MORE_TEXTS = [
    "",
    " ",
    "\n\n\n \t\t  x",
    "3.14159 and 1234567 이천이십육년",
    "👩‍⚕️ café naïve Ünïcödé",
    "I'll can't WE'RE <think>no</think>",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_file_computes_the_parents_logits(shape: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model, words = decoder(shape), tokenizer()
    write_gguf(model, words, tmp_path / "m.gguf", "f32")
    runtime = LlamaRuntime(tmp_path / "m.gguf", 128, exact_cache=True)
    for text in TEXTS:
        ids = runtime.encode(text)
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0]
        assert (runtime.logits(ids) - expected).abs().max() < 1e-4
        likeliest = int(expected[-1].argmax())
        assert runtime.decode(ids, 3)[0] == likeliest
    runtime.close()


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_llama_cpp_makes_equal_token_ids(pre: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    words = tokenizer() if pre == "gpt-2" else named_tokenizer(tmp_path / "t", pre)
    write_gguf(decoder("qwen3"), words, tmp_path / "m.gguf", "f32")
    runtime = LlamaRuntime(tmp_path / "m.gguf", 64)
    for text in (*TEXTS, *_MORE_TEXTS):
        assert runtime.encode(text) == [words.begin_of_text_id, *words.encode([text])[0]], text
    runtime.close()


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_every_tensor_is_the_parents_rounded_to_its_type(kind: str, tmp_path: Path) -> None:
    model = decoder("llama moe, stretched")
    write_gguf(model, tokenizer(), tmp_path / "m.gguf", kind)
    exact = dict(tensors(model))
    found = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert [each.name for each in found] == list(exact)
    scale = 2**-11  # a block's scale is in fp16
    bits = {
        "F32": 0.0,
        "F16": 2**-11,
        "BF16": 2**-8,
        "Q8_0": 1 / 254 + scale,
        "Q4_0": 1 / 8 + scale,
    }
    for each in found:
        values = torch.from_numpy(gguf.quants.dequantize(each.data, each.tensor_type).copy())
        original = exact[each.name]
        assert values.shape == original.shape
        error = (values - original).abs().max() / original.abs().max()
        assert error <= bits[each.tensor_type.name]
        assert is_matrix(each.name) == (each.tensor_type.name != "F32")
        assert each.n_bytes == type_bytes(original.shape, each.tensor_type.name)


def test_q8_0_is_byte_for_byte_what_llama_cpp_makes(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model, words = decoder("qwen3moe"), tokenizer()
    write_gguf(model, words, tmp_path / "exact.gguf", "f32")
    write_gguf(model, words, tmp_path / "ours.gguf", "q8_0")
    gguf_file.quantise(tmp_path / "exact.gguf", tmp_path / "theirs.gguf", 7)
    ours, theirs = (gguf.GGUFReader(tmp_path / f"{n}.gguf").tensors for n in ("ours", "theirs"))
    by_name = {each.name: each for each in theirs}
    assert {each.name for each in ours} == by_name.keys()
    for each in ours:
        assert each.tensor_type == by_name[each.name].tensor_type
        assert each.data.tobytes() == by_name[each.name].data.tobytes(), each.name


def test_rows_that_do_not_divide_into_blocks_stay_wider() -> None:
    assert type_of("blk.0.attn_q.weight", (64, 64), "q4_0") == "Q4_0"
    assert type_of("blk.0.attn_q.weight", (64, 48), "q4_0") == "F16"
    assert type_of("blk.0.attn_q.weight", (64, 64), "q4_k_m") == "Q5_0"
    assert type_of("blk.0.ffn_down.weight", (64, 288), "q4_k_m") == "Q8_0"
    assert type_of("blk.0.ffn_gate_inp.weight", (8, 256), "q4_k_m") == "F32"


@pytest.mark.parametrize("experts", [4, 8])
@pytest.mark.parametrize("hidden", [64, 256])
def test_k_quants_are_no_larger_than_planned(hidden: int, experts: int, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = decoder("qwen3moe", hidden=hidden, experts=experts, heads=8)
    write_gguf(model, tokenizer(), tmp_path / "m.gguf", "q4_k_m")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    shapes = dict(tensors(model))
    found = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert {each.name for each in found} == shapes.keys()
    for each in found:
        planned = type_of(each.name, shapes[each.name].shape, "q4_k_m", experts)
        assert each.n_bytes <= type_bytes(shapes[each.name].shape, planned)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_k_m", "q4_0"])
def test_runtime_computes_the_rounded_parent(kind: str, tmp_path: Path) -> None:
    """What is left is llama.cpp's own rounding of activations, to 16 or 8 bits."""
    pytest.importorskip("llama_cpp")
    model = decoder("qwen3moe", hidden=256, initializer_range=0.05)
    write_gguf(model, tokenizer(), tmp_path / "m.gguf", kind)
    exact = logits(model, ids := tokenizer().encode([TEXTS[0]])[0])
    stored = read_gguf(tmp_path / "m.gguf", model).model
    runtime = LlamaRuntime(tmp_path / "m.gguf", 128, exact_cache=True)
    rounded, found = logits(stored, ids), runtime.logits(ids)
    runtime.close()
    assert gap(rounded, found) < (1e-5 if kind in {"f16", "bf16"} else 1e-3)
    assert gap(exact, found) > 10 * gap(rounded, found) or kind in {"f16", "bf16", "q8_0"}


def logits(model: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0]


def gap(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Mean KL divergence, nats."""
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_an_exact_file_is_read_back_bit_for_bit(shape: str, tmp_path: Path) -> None:
    model = decoder(shape)
    write_gguf(model, tokenizer(), tmp_path / "m.gguf", "f32")
    found = read_gguf(tmp_path / "m.gguf", model)
    assert all(each.error == 0 for each in found.roundings)
    ids = tokenizer().encode([TEXTS[0]])[0]
    assert torch.equal(logits(found.model, ids), logits(model, ids))


def test_formats_are_ordered_by_size() -> None:
    model = decoder("qwen3moe", hidden=256, expert_hidden_size=256)
    sizes = [
        sum(type_bytes(t.shape, type_of(n, t.shape, kind)) for n, t in tensors(model))
        for kind in GGUF_FORMATS
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_vocabulary_names_every_row_once(tmp_path: Path) -> None:
    words = named_tokenizer(tmp_path, "qwen2")
    found = vocabulary(words, 330)
    assert len(set(found.tokens)) == 330
    assert found.composes
    assert found.chat_template == "{{ messages }}"
    assert [found.tokens[stop] for stop in found.stops] == ["<|endoftext|>", "<|im_end|>"]
    assert {found.tokens[n] for n in found.control} == {"<|endoftext|>", "<|im_end|>"}
    assert {found.tokens[n] for n in found.added} == {"<think>"}
    assert found.unused == frozenset(range(words.vocab_size, 330))


def test_what_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    imported.mixtral(tmp_path / "mixtral")
    imported.qwen(tmp_path / "other")
    with pytest.raises(VariantError, match="byte-level BPE"):
        vocabulary(Tokenizer.load(tmp_path / "mixtral"), 330)
    with pytest.raises(VariantError, match=r"pre-tokeniser out of gpt-2, qwen2, llama-bpe"):
        vocabulary(Tokenizer.load(tmp_path / "other"), 330)
    scaling = RopeScaling(
        factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16
    )
    with pytest.raises(VariantError, match="rope_scaling"):
        write_gguf(
            decoder("qwen3moe", rope_scaling=scaling), tokenizer(), tmp_path / "m.gguf", "f32"
        )


def test_fp16_refuses_weights_beyond_its_range(tmp_path: Path) -> None:
    model = decoder("qwen3")
    model.embedding.data[0, 0] = 1e5
    with pytest.raises(VariantError, match="fp16's range"):
        write_gguf(model, tokenizer(), tmp_path / "m.gguf", "f16")


@pytest.mark.parametrize("kind", ["normal", "uniform", "shifted", "outliers"])
def test_k_quants_are_within_their_largest_error(kind: str, tmp_path: Path) -> None:
    """Uniform weights are the worst: whole blocks near the ends of their range."""
    pytest.importorskip("llama_cpp")
    model = decoder("qwen3moe", hidden=256, expert_hidden_size=256, experts=8, heads=8)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if kind == "uniform":
            drawn = torch.rand(parameter.shape, generator=generator) - 0.5
        if kind == "outliers":
            drawn = drawn / torch.rand(parameter.shape, generator=generator).clamp_min(1e-2)
        parameter.data.copy_(drawn + 3 * (kind == "shifted"))
    write_gguf(model, tokenizer(), tmp_path / "m.gguf", "q4_k_m")
    found = read_gguf(tmp_path / "m.gguf", model).roundings
    types = {"Q4_K", "Q5_K", "Q6_K", "Q8_0"}
    assert {each.limit for each in found} >= {LARGEST_ERROR[each] for each in types}
    for each in found:
        assert each.error <= each.limit, each
