"""ONNX files: ONNX Runtime computes what the parent computes, with and without its cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.decoder import Decoder
from models.variants.compare import compare, sample_rows
from models.variants.extras import VariantError
from models.variants.kinds import KINDS, files_of
from models.variants.onnx_file import DATA_FILE, ONNX_FILE, read_initialisers, read_onnx, write_onnx
from models.variants.onnx_runtime import OnnxRuntime
from models.variants.onnx_tensors import (
    SCALES,
    ZEROS,
    bits_of,
    expanded,
    largest_error,
    places,
    rounded,
    stored_shapes,
)
from tests.variants.models import SHAPES, TEXTS, decoder, tokenizer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
WORDS = tokenizer()


def made(model: Decoder, folder: Path, kind: str) -> Path:
    KINDS["onnx"].write(model, WORDS, folder, kind, lambda done, total: None)
    return folder / ONNX_FILE


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_file_computes_the_parents_logits(shape: str, tmp_path: Path) -> None:
    model = decoder(shape)
    runtime = OnnxRuntime(made(model, tmp_path / "a", "f32"), WORDS.begin_of_text_id)
    for text in TEXTS:
        ids = runtime.encode(text)
        assert ids == [WORDS.begin_of_text_id, *WORDS.encode([text])[0]]
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0]
        assert (runtime.logits(ids) - expected).abs().max() < 1e-4
    runtime.close()


def test_who_may_read_the_graph_may_read_its_weights(tmp_path: Path) -> None:
    graph = made(decoder("qwen3"), tmp_path / "a", "f32")
    modes = {path.name: path.stat().st_mode for path in graph.parent.glob("model.onnx*")}
    assert set(modes) == {ONNX_FILE, DATA_FILE}
    assert len(set(modes.values())) == 1


@pytest.mark.parametrize("tied", [True, False])
def test_the_cache_changes_nothing(tied: bool, tmp_path: Path) -> None:
    model = decoder("qwen3moe", tie_embeddings=tied)
    runtime = OnnxRuntime(made(model, tmp_path / "a", "f32"), WORDS.begin_of_text_id)
    ids = runtime.encode(TEXTS[0])
    # In parts, as the graph's inputs and outputs are documented.
    session = onnxruntime.InferenceSession(tmp_path / "a" / ONNX_FILE)
    names = [each.name for each in session.get_outputs()]
    past = {each.name: np.zeros((1, 2, 0, 32), np.float32) for each in session.get_inputs()[2:]}
    found, done = [], 0
    for part in (ids[:7], ids[7:8], ids[8:11], ids[11:]):
        done += len(part)
        mask = np.ones((1, done), np.int64)
        feeds = {"input_ids": np.array([part]), "attention_mask": mask, **past}
        out = dict(zip(names, session.run(None, feeds), strict=True))
        found.append(out.pop("logits")[0])
        past = {name.replace("present", "past_key_values"): v for name, v in out.items()}
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].numpy()
    assert np.abs(np.concatenate(found) - expected).max() < 1e-4
    assert next(iter(past.values())).shape == (1, 2, len(ids), 32)
    decoded = list(ids)
    with torch.no_grad():
        for _ in range(4):
            decoded.append(int(model(torch.tensor([decoded]))[0, -1].argmax()))
    assert runtime.decode(ids, 4) == decoded[len(ids) :]


def test_two_sequences_of_a_batch_are_apart(tmp_path: Path) -> None:
    model = decoder("qwen3moe")
    session = onnxruntime.InferenceSession(made(model, tmp_path / "a", "f32"))
    past = {each.name: np.zeros((2, 2, 0, 32), np.float32) for each in session.get_inputs()[2:]}
    ids = np.random.default_rng(0).integers(0, 330, (2, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones((2, 9), np.int64), **past}
    with torch.no_grad():
        expected = model(torch.tensor(ids)).numpy()
    assert np.abs(session.run(["logits"], feeds)[0] - expected).max() < 1e-4


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shape", ["qwen3moe", "llama"])
def test_runtime_computes_the_rounded_parent(kind: str, shape: str, tmp_path: Path) -> None:
    """What is left is ONNX Runtime's own rounding of activations to int8."""
    model = decoder(shape, hidden=256, initializer_range=0.05, tie_embeddings=shape == "llama")
    path = made(model, tmp_path / "a", kind)
    stored = read_onnx(tmp_path / "a", model)
    assert all(each.error <= each.limit for each in stored.roundings)
    runtime = OnnxRuntime(path, WORDS.begin_of_text_id)
    rows = {"samples": sample_rows(WORDS, 100)}
    beside_stored = compare(stored.model, runtime, rows)["samples"].kl
    beside_parent = compare(model, runtime, rows)["samples"].kl
    assert beside_stored < 1e-3
    assert beside_parent > 10 * beside_stored or kind == "int8"


@pytest.mark.parametrize(("kind", "mixture"), [("f32", "MoE"), ("int4", "QMoE")])
def test_a_single_expert_is_no_mixture(kind: str, mixture: str, tmp_path: Path) -> None:
    """Runtimes that were built without these operators run dense students too."""
    for experts in (4, 1):
        model = decoder("qwen3moe", experts=experts, experts_per_token=1)
        graph = onnx.load(made(model, tmp_path / str(experts), kind)).graph
        kinds = {node.op_type for node in graph.node}
        routers = [each.name for each in graph.initializer if "router" in each.name]
        assert (mixture in kinds, bool(routers)) == (experts > 1, experts > 1)


@pytest.mark.parametrize(("kind", "level"), [("int8", None), ("int4", 4)])
def test_only_experts_in_four_bits_name_a_level(
    kind: str, level: int | None, tmp_path: Path
) -> None:
    """Without it they are computed in fp32; runtimes before 1.31 refuse files that name one."""
    graph = onnx.load(made(decoder("qwen3moe"), tmp_path / "a", kind)).graph
    experts = [node for node in graph.node if node.op_type == "QMoE"]
    levels = {a.i for node in experts for a in node.attribute if a.name == "accuracy_level"}
    assert (len(experts) > 0, levels) == (True, {level} - {None})


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_to_the_nearest_of_each_block_of_32(bits: int) -> None:
    weights = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(0))
    weights[0, 0, :32] += 10  # a block far from nought, and others on one side of it
    weights[0, 1], weights[0, 2] = weights[0, 1].abs(), -weights[0, 2].abs()
    parts = rounded(weights, bits)
    assert {name: part.shape for name, part in parts.items()} == stored_shapes("", (3, 5, 96), bits)
    scales, found = parts[SCALES].reshape(-1), expanded(parts, bits).reshape(-1, 32)
    for block, scale, given in zip(weights.reshape(-1, 32), scales, found, strict=True):
        if bits == 8:
            least, steps = -float(block.abs().max()), torch.arange(-127, 128)
        else:
            least = min(float(block.min()), 0)
            first = round(least / float(scale))
            steps = torch.arange(first, first + 16)
        span = max(float(block.max()), 0) - least if bits == 4 else -2 * least
        assert scale == pytest.approx(span / (len(steps) - 1))
        grid = steps * float(scale)  # brute force: the nearest multiple of the block's scale
        nearest = (block[:, None] - grid).abs().argmin(1)
        torch.testing.assert_close(given, grid[nearest])
    error = (found - weights.reshape(-1, 32)).abs().amax(-1)
    assert (error / weights.reshape(-1, 32).abs().amax(-1)).max() <= largest_error(bits)


@pytest.mark.parametrize("law", ["normal", "laplace", "one-sided"])
def test_a_zero_for_each_block_of_four_bits_pays(law: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2000, 32, generator=generator)
    if law == "laplace":
        weights *= torch.empty(2000, 32).exponential_(generator=generator).sqrt()
    if law == "one-sided":
        weights = weights.abs()
    step = weights.abs().amax(-1, keepdim=True) / 7  # without zeros
    plain = (weights / step).round() * step
    ours, others = (
        float((each - weights).square().mean())
        for each in (expanded(rounded(weights, 4), 4), plain)
    )
    assert ours < {"normal": 0.72, "laplace": 0.66, "one-sided": 0.24}[law] * others


def test_a_block_of_zeros_stays_zero() -> None:
    assert torch.equal(expanded(rounded(torch.zeros(2, 32), 4), 4), torch.zeros(2, 32))


def test_artefacts_whose_blocks_have_no_zeros_are_still_known(tmp_path: Path) -> None:
    """They were made before there were any; ONNX Runtime takes 8."""
    made(decoder("qwen3moe"), tmp_path / "a", "int4")
    old = onnx.load(tmp_path / "a" / ONNX_FILE)
    for each in [each for each in old.graph.initializer if each.name.endswith(ZEROS)]:
        old.graph.initializer.remove(each)
    onnx.save(old, tmp_path / "a" / ONNX_FILE)
    KINDS["onnx"].inspect(tmp_path / "a")
    old.graph.initializer.remove(next(e for e in old.graph.initializer if e.name.endswith(SCALES)))
    onnx.save(old, tmp_path / "a" / ONNX_FILE)
    with pytest.raises(VariantError, match="scales"):
        KINDS["onnx"].inspect(tmp_path / "a")


def test_norms_and_routers_are_exact_and_the_table_has_eight_bits() -> None:
    model = decoder("qwen3moe", tie_embeddings=False)
    bits = {place.name: bits_of(place.name, "int4") for place in places(model)}
    assert {name for name, n in bits.items() if n == 8} == {"embedding", "head"}
    assert {name.split(".")[-1] for name, n in bits.items() if n == 32} == {
        "norm", "attention_norm", "experts_norm", "q_norm", "k_norm", "router",
    }  # fmt: skip
    assert {name.split(".")[-1] for name, n in bits.items() if n == 4} == {
        "qkv", "out", "gate_up", "down",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["f32", "int8", "int4"])
@pytest.mark.parametrize("experts", [4, 1])
def test_what_is_written_is_no_larger_than_planned(kind: str, experts: int, tmp_path: Path) -> None:
    model = decoder(
        "qwen3moe",
        hidden=256,
        experts=experts,
        experts_per_token=1,
        expert_hidden_size=1024 // experts,
    )
    made(model, tmp_path / "a", kind)
    written = sum(path.stat().st_size for path in files_of(tmp_path / "a"))
    planned = KINDS["onnx"].size(model.config, WORDS, kind)
    assert 0.98 * planned < written <= planned


def test_rows_that_do_not_divide_into_blocks_are_refused(tmp_path: Path) -> None:
    model = decoder("qwen3moe", expert_hidden_size=40)
    with pytest.raises(VariantError, match=r"multiple of 32 numbers in layers\.0\.down, got 40"):
        write_onnx(model, tmp_path, "int8")
    assert not list(tmp_path.iterdir())


def test_files_that_were_put_together_are_seen(tmp_path: Path) -> None:
    model, fewer = decoder("qwen3moe"), decoder("qwen3moe", experts=3)
    made(model, tmp_path / "a", "f32")
    made(fewer, tmp_path / "b", "f32")
    whole, other = (onnx.load(tmp_path / name / ONNX_FILE) for name in "ab")
    places_of = {each.name: each for each in whole.graph.initializer}
    small = next(each for each in other.graph.initializer if each.name == "layers.1.down")
    places_of["layers.1.down"].CopyFrom(small)
    onnx.save(whole, tmp_path / "a" / ONNX_FILE)
    with pytest.raises(VariantError, match=r"layers\.1\.down .*An expert is missing"):
        read_initialisers(tmp_path / "a")
    whole.graph.initializer.remove(places_of["layers.1.down"])
    onnx.save(whole, tmp_path / "a" / ONNX_FILE)
    with pytest.raises(VariantError, match=r"missing \['layers.1.down'\]"):
        KINDS["onnx"].inspect(tmp_path / "a")
    for damaged in (b"", b"not an onnx file", (tmp_path / "b" / ONNX_FILE).read_bytes()[:500]):
        (tmp_path / "a" / ONNX_FILE).write_bytes(damaged)
        with pytest.raises(VariantError, match="ONNX file that was made here"):
            KINDS["onnx"].inspect(tmp_path / "a")
