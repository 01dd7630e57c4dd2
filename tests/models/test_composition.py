"""Composed models: what they compute, what transformers reads, and what leaving one out changes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoint import load_model, model_digest
from models.composition import (
    compose,
    ownership,
    read_ownership,
    save_composed,
)
from models.config import ModelConfig
from models.decoder import Decoder
from models.expert_module import NOT_PRIVATE, ExpertModule, Facts, read_module, write_module
from models.experts import Activation
from models.formats.families import QWEN3_MOE
from models.formats.tensors import named_views
from models.owned import OwnedError, banks, branch, owned_tensors
from models.tokenizer import Tokenizer

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
TOKENS = torch.randint(0, 300, (24, 24), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def base() -> Decoder:
    return Decoder(CONFIG, torch.Generator().manual_seed(1))


def make_module(
    folder: Path, base: Decoder, owner: str, sources: tuple[int, ...], seed: int, row_scale: float
) -> ExpertModule:
    model = compose(base, [])
    branch(model, sources, train_rows=True)
    generator = torch.Generator().manual_seed(seed)
    for bank in banks(model):
        for weight in (bank.gate_up.weight, bank.down.weight):
            weight.data.normal_(0, 0.2, generator=generator)
        bank.router.weight.data.normal_(0, row_scale, generator=generator)
    facts = Facts(
        owner=owner, data="Text.", licence="Any.", privacy=NOT_PRIVATE,
        base_digest=model_digest(base), sources=sources, recipe={},
    )  # fmt: skip
    path = write_module(folder, owned_tensors(model), facts)
    return read_module(path, base.config, model_digest(base))


@pytest.fixture(scope="module")
def modules(base: Decoder, tmp_path_factory: pytest.TempPathFactory) -> list[ExpertModule]:
    """Given out of order; the router rows of `court` are too short to be chosen often."""
    folder = tmp_path_factory.mktemp("modules")
    return [
        make_module(folder, base, "hospital", (0, 2), 11, 0.3),
        make_module(folder, base, "bank", (1,), 12, 0.3),
        make_module(folder, base, "court", (3,), 13, 0.1),
    ]


def without(modules: list[ExpertModule], owner: str) -> list[ExpertModule]:
    return [module for module in modules if module.card.owner != owner]


def uses(model: Decoder, token_BT: Tensor, expert: int) -> Tensor:
    """Which sequences send a token to an expert, in any layer, bool [B]."""
    chosen = [(r.expert_BTK == expert).flatten(1).any(1) for r in model.hidden(token_BT)[1]]
    return torch.stack(chosen).any(0)


def test_one_module_computes_what_its_branched_model_computed(
    base: Decoder, modules: list[ExpertModule]
) -> None:
    branched = compose(base, [])
    branch(branched, modules[0].card.sources, train_rows=True)
    for bank, own in zip(banks(branched), modules[0].banks(CONFIG), strict=True):
        bank.load_state_dict(own.state_dict())
    torch.testing.assert_close(compose(base, modules[:1])(TOKENS), branched(TOKENS))


def test_experts_stand_in_order_of_owner(base: Decoder, modules: list[ExpertModule]) -> None:
    composed = compose(base, modules)
    assert composed.config.experts == 8
    assert model_digest(composed) == model_digest(compose(base, modules[::-1]))
    tensors, plain = dict(named_views(composed, QWEN3_MOE)), dict(named_views(base, QWEN3_MOE))
    owners = {"bank": (4, 1), "court": (5, 1), "hospital": (6, 2)}
    name = "model.layers.1.mlp.experts.{}.up_proj.weight"
    for module in modules:
        first, count = owners[module.card.owner]
        for expert in range(count):
            assert torch.equal(
                tensors[name.format(first + expert)], module.tensors[name.format(expert)]
            )
        rows = tensors["model.layers.1.mlp.gate.weight"][first : first + count]
        assert torch.equal(rows, module.tensors["model.layers.1.mlp.gate.weight"])
    for key, tensor in plain.items():
        assert torch.equal(tensors[key][: len(tensor)], tensor)
    shares = ownership(base, model_digest(base), modules).shares
    assert [(s.owner, s.first, s.count) for s in shares] == [
        ("public", 0, 4), ("bank", 4, 1), ("court", 5, 1), ("hospital", 6, 2),
    ]  # fmt: skip
    assert shares[2].module == modules[2].card.weights_digest
    more = compose(base, modules, experts_per_token=3)
    assert more.config.experts_per_token == 3
    torch.testing.assert_close(more(TOKENS), composed(TOKENS, Activation(3)))
    with pytest.raises(OwnedError, match="per token"):
        compose(base, [], experts_per_token=5)
    with pytest.raises(OwnedError, match="one module per owner"):
        compose(base, [modules[0], modules[0]])


def test_transformers_loads_a_composed_folder(
    base: Decoder, modules: list[ExpertModule], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    composed, tokenizer = compose(base, modules), Tokenizer.train(["a few words"] * 3, 300)
    owners = ownership(base, model_digest(base), modules)
    save_composed(composed, tokenizer, owners, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        torch.testing.assert_close(composed(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-4)
    assert model_digest(load_model(tmp_path / "m")[0]) == model_digest(composed)
    assert read_ownership(tmp_path / "m") == owners
    with pytest.raises(OwnedError, match="yet"):
        save_composed(composed, tokenizer, owners, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    gap = owners.model_copy(update={"shares": owners.shares[1:]}).model_dump_json()
    for damaged in ("{}", "[", gap):
        (tmp_path / "m" / "experts.json").write_text(damaged)
        with pytest.raises(OwnedError, match="Compose the model again"):
            read_ownership(tmp_path / "m")


def test_modules_of_a_base_without_query_norms_become_a_mixtral(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = CONFIG.model_copy(update={"qk_norm": "none"})
    base = Decoder(config, torch.Generator().manual_seed(1))
    module = make_module(tmp_path / "modules", base, "court", (0, 3), 5, 0.3)
    composed, tokenizer = compose(base, [module]), Tokenizer.train(["a few words"] * 3, 300)
    owners = ownership(base, model_digest(base), [module])
    save_composed(composed, tokenizer, owners, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(theirs).__name__ == "MixtralForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(composed(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-4)


def rounds_alike(hidden: int) -> bool:
    """Whether this processor's products come out bit for bit the same for fewer rows of weights."""
    generator = torch.Generator().manual_seed(hidden)
    weight = torch.randn(24, hidden, generator=generator)
    for tokens in (16, 40, 128, 500):
        x = torch.randn(tokens, hidden, generator=generator)
        full = torch.nn.functional.linear(x, weight)
        for experts in range(2, 24):
            fewer = torch.nn.functional.linear(x, weight[:experts])
            torch.testing.assert_close(fewer, full[:, :experts], rtol=1e-4, atol=1e-4)
            if not torch.equal(fewer, full[:, :experts]):
                return False
    return True


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Bit for bit where products are, else up to their rounding."""
    if rounds_alike(CONFIG.hidden_size):
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_leaving_one_out_changes_no_bit_where_nobody_chose_it(
    base: Decoder, modules: list[ExpertModule]
) -> None:
    composed, reduced = compose(base, modules), compose(base, without(modules, "court"))
    used_B = uses(composed, TOKENS, 5)
    assert used_B.any()
    assert (~used_B).any()
    apart = TOKENS[~used_B]
    assert_same(composed(apart), reduced(apart))
    assert (composed(TOKENS) - reduced(TOKENS)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("owner", ["bank", "court", "hospital"])
def test_leaving_one_out_equals_masking_its_rows(
    base: Decoder, modules: list[ExpertModule], owner: str
) -> None:
    composed, reduced = compose(base, modules), compose(base, without(modules, owner))
    share = next(s for s in ownership(base, "0" * 64, modules).shares if s.owner == owner)
    assert any(uses(composed, TOKENS, share.first + i).any() for i in range(share.count))

    def mask(_: object, __: object, logits_BTE: Tensor) -> Tensor:
        masked = logits_BTE.clone()
        masked[..., share.first : share.first + share.count] = float("-inf")
        return masked

    for block in composed.blocks:
        block.experts.router.register_forward_hook(mask)
    assert_same(composed(TOKENS), reduced(TOKENS))
