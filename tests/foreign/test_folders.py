"""Folders of other classes: what opens, what a merged one holds, what is refused and how."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from models.checkpoint import load_model, model_digest
from models.folders import is_ours, open_model, write_model
from models.foreign.model import ForeignModel
from models.formats.files import CheckpointError
from models.lora import add_lora, merge_lora
from models.recipe import prepare
from models.training_settings import Recipe
from tests.foreign.families import FAMILIES, write_family

Family = Callable[[str], Path]
TOKEN_BT = torch.randint(1, 60, (3, 11), generator=torch.Generator().manual_seed(5))
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LLAMA_LIKE = {*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
GPT2 = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}


def opened(folder: Path) -> ForeignModel:
    model, _ = open_model(folder)
    assert isinstance(model, ForeignModel)
    return model


def with_random_adapters(folder: Path) -> ForeignModel:
    model, generator = opened(folder), torch.Generator().manual_seed(2)
    add_lora(model, 4, 8.0, generator)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


@torch.no_grad()
def logits_by_transformers(folder: Path) -> torch.Tensor:
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return network.eval()(input_ids=TOKEN_BT).logits


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_folder_computes_what_transformers_computes(model_type: str, family: Family) -> None:
    folder = family(model_type)
    assert not is_ours(folder)
    model = opened(folder)
    torch.testing.assert_close(model(TOKEN_BT), logits_by_transformers(folder), rtol=0, atol=1e-6)
    assert (model.max_positions, model.vocab_size) == (64, 300)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_adapters_go_on_all_linear_layers_of_the_blocks_and_start_as_the_identity(
    model_type: str, family: Family
) -> None:
    model = opened(family(model_type))
    before = model(TOKEN_BT)
    prepare(model, Recipe(kind="lora", sequence_length=16))
    assert torch.equal(model(TOKEN_BT), before)
    names = {name.split(".", 3)[3] for name, _ in model.adapted_layers()}
    assert names == (GPT2 if model_type == "gpt2" else LLAMA_LIKE)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.endswith(("lora_A", "lora_B")) for name in trained)
    assert set(model.source.frozen) == {"lm_head"}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_merged_folder_is_the_source_but_for_the_adapted_weights(
    model_type: str, family: Family, tmp_path: Path
) -> None:
    source, released = family(model_type), tmp_path / "released"
    model = with_random_adapters(source)
    adapted = model(TOKEN_BT)
    with pytest.raises(CheckpointError, match="merge_lora"):
        write_model(model, open_model(source)[1], released)
    assert not released.exists()
    merge_lora(model)
    write_model(model, open_model(source)[1], released)
    torch.testing.assert_close(logits_by_transformers(released), adapted, rtol=0, atol=1e-5)
    assert model_digest(opened(released)) == model_digest(model)
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(released / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(model.source.tensors.values())
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            assert (released / path.name).read_bytes() == path.read_bytes()


def test_shards_bf16_and_other_files_are_kept_as_they_are(tmp_path: Path) -> None:
    source, released = tmp_path / "source", tmp_path / "released"
    write_family("qwen2", source)
    network = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    (source / "model.safetensors").unlink()
    network.save_pretrained(source, max_shard_size="40KB")
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(shards) > 1
    (source / "LICENSE").write_text("free")
    (source / "modeling_own.py").write_text("raise SystemExit")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    model = with_random_adapters(source)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    merge_lora(model)
    write_model(model, open_model(source)[1], released)
    assert sorted(path.name for path in released.glob("*.safetensors")) == shards
    tensors = {k: v for shard in shards for k, v in load_file(released / shard).items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    for name, layer in model.adapted_layers():
        stored = tensors[model.source.tensors[name]]
        assert torch.equal(stored, layer.weight.to(torch.bfloat16))
    kept = {path.name for path in source.iterdir()} - {"modeling_own.py", "pytorch_model.bin"}
    assert {path.name for path in released.iterdir()} == kept


def test_gpt2_as_it_was_first_published_opens_and_merges(family: Family, tmp_path: Path) -> None:
    """Its tensors lack the prefix `transformer.`, and masks are stored among them."""
    folder = tmp_path / "gpt2"
    shutil.copytree(family("gpt2"), folder)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(64, 64).tril()[None, None].contiguous()
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    model = with_random_adapters(folder)
    assert model.source.tensors["transformer.h.0.mlp.c_fc"] == "h.0.mlp.c_fc.weight"
    adapted = model(TOKEN_BT)
    merge_lora(model)
    write_model(model, open_model(folder)[1], tmp_path / "released")
    torch.testing.assert_close(
        logits_by_transformers(tmp_path / "released"), adapted, rtol=0, atol=1e-5
    )


def test_layers_that_cannot_take_adapters_are_listed_with_the_reason(family: Family) -> None:
    frozen = opened(family("opt")).source.frozen
    assert frozen["model.decoder.layers.1.fc2"] == (
        "its input of shape (10, 48) is not one row per sequence"
    )
    assert len(list(opened(family("opt")).adapted_layers())) == 8
    assert len(list(opened(family("olmoe")).adapted_layers())) == 8  # attention, never experts


def test_nothing_is_asked_of_a_network(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    opened(family("gpt2"))


def test_full_training_is_refused_with_the_reason(family: Family) -> None:
    with pytest.raises(ValueError, match=r"'lora' for a GPT2LMHeadModel, got 'full'.*exactly"):
        prepare(opened(family("gpt2")), Recipe(kind="full", sequence_length=16))


def test_what_only_our_decoder_can_do_says_what_another_class_can(family: Family) -> None:
    with pytest.raises(CheckpointError, match=r"got 'gpt2'.*owned experts.*need.*through LoRA"):
        load_model(family("gpt2"))


def test_stored_buffers_are_part_of_the_digest(family: Family) -> None:
    model = opened(family("gpt2"))
    before = model_digest(model)
    model.network.register_buffer("scale", torch.tensor(1.0))
    first = model_digest(model)
    model.network.scale.fill_(2.0)
    assert len({before, first, model_digest(model)}) == 3


def test_sequences_beyond_the_positions_are_refused(family: Family) -> None:
    with pytest.raises(ValueError, match=r"at most 64 tokens.*got 65"):
        prepare(opened(family("gpt2")), Recipe(kind="lora", sequence_length=65))


def test_lengths_at_which_padding_would_be_felt_are_refused(family: Family) -> None:
    """Phi-3's rotary embedding changes where the longest sequence of a batch exceeds 16."""
    prepare(opened(family("phi3")), Recipe(kind="lora", sequence_length=16))
    with pytest.raises(ValueError, match="with and without padding, got 32"):
        prepare(opened(family("phi3")), Recipe(kind="lora", sequence_length=32))


def test_without_transformers_the_extra_is_named(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"arion-federated\[foreign\]"):
        open_model(family("gpt2"))


def test_an_encoder_is_refused_because_it_sees_later_tokens(family: Family) -> None:
    with pytest.raises(CheckpointError, match="BertLMHeadModel: its predictions depend on later"):
        open_model(family("bert"))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (transformers.ViTConfig(hidden_size=8, num_hidden_layers=1), "ViTForImageClassification"),
        (transformers.T5Config(d_model=8, num_layers=1), "T5ForConditionalGeneration"),
        (transformers.BertConfig(hidden_size=8), "BertForMaskedLM"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_of_models_are_refused_by_name(
    config: transformers.PreTrainedConfig, named: str, family: Family, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(family("gpt2"), folder)
    config.save_pretrained(folder)
    edit_config(folder, architectures=[named])
    with pytest.raises(CheckpointError, match=f"causal language model .* got {named}"):
        open_model(folder)


def code_from_elsewhere(folder: Path) -> None:
    (folder / "modeling_own.py").write_text("raise SystemExit('this code must never run')")
    own = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    edit_config(folder, model_type="own", architectures=["Own"], auto_map=own)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def leaving_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES = {
    "code": (code_from_elsewhere, "got Own of type 'own'"),
    "pickle": (pickled, "a pickle.*save_pretrained"),
    "no weights": (without("model.safetensors"), "Point at a folder that holds"),
    "no config": (without("config.json"), "Expected config.json"),
    "no tokenizer": (without("tokenizer.json"), "Expected a tokenizer"),
    "quantised": (lambda f: edit_config(f, quantization_config={"bits": 4}), "Dequantise"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "Merge it into its base"),
    "wrong config": (lambda f: edit_config(f, n_head="x"), "config.json that GPT2LMHeadModel"),
    "other size": (lambda f: edit_config(f, n_layer=3), "missing .*transformer.h.2"),
    "missing": (change_tensors(lambda t: t.pop("transformer.ln_f.bias")), "missing .*ln_f.bias"),
    "surplus": (change_tensors(lambda t: t.update(odd=torch.ones(1))), "surplus .*odd"),
    "shape": (
        change_tensors(lambda t: t.update({"transformer.ln_f.bias": torch.ones(3)})),
        "of another shape .*ln_f.bias",
    ),
    "nan": (
        change_tensors(lambda t: t["transformer.ln_f.bias"].fill_(float("nan"))),
        "NaN or infinity in transformer.ln_f.bias",
    ),
    "truncated": (truncated, "damaged"),
    "outside": (leaving_shard, "Only files of the folder itself"),
    "vocabulary": (
        lambda f: write_family("gpt2", f, vocab_size=200) and None, "at most 200 tokens"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_cannot_train_is_a_clear_error(
    damage: str, family: Family, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(family("gpt2"), folder)
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(CheckpointError, match=message):
        open_model(folder)
