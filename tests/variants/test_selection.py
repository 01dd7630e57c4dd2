"""Choosing experts: against brute force, against masked routers, and never by private text."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from arion.public_text import PublicText, read_public_text
from arion.variant_selection import Choice, select
from client.shards import DataError
from models.checkpoint import model_digest
from models.decoder import Block, Decoder
from models.language_model import IGNORED
from models.tokenizer import Row, stack_rows
from models.variants.experts import best, everything, expert_use, merge, of_owners, prune
from models.variants.extras import VariantError
from models.variants.parent import Parent
from models.variants.plan import Target, Wanted
from tests.variants.artefacts import OWNERS
from tests.variants.models import TEXTS, decoder, tokenizer

MODEL = decoder("qwen3moe", experts=6, experts_per_token=2)
WORDS = tokenizer()
ROWS = [row for rows in WORDS.rows(TEXTS, 30, None) for row in rows]
TOKENS = torch.randint(0, 330, (4, 24), generator=torch.Generator().manual_seed(5))
KEPT = ((0, 2, 5), (1, 2, 3))


def masked(model: Decoder, kept: tuple[tuple[int, ...], ...]) -> Tensor:
    """The model's logits where no other expert can be chosen."""
    hooks = []
    for block, experts in zip(model.blocks, kept, strict=True):
        gone = torch.tensor([e not in experts for e in range(model.config.experts)])
        hooks.append(
            block.experts.router.register_forward_hook(
                lambda module, x, logits, gone=gone: logits.masked_fill(gone, -torch.inf)
            )
        )
    with torch.no_grad():
        found = model(TOKENS)
    for hook in hooks:
        hook.remove()
    return found


def test_a_pruned_model_is_the_parent_with_router_rows_masked() -> None:
    # In fp64: a matrix product of three rows rounds otherwise than one of six.
    model = decoder("qwen3moe", experts=6, experts_per_token=2)
    smaller = prune(model, KEPT)
    assert (smaller.config.experts, smaller.config.experts_per_token) == (3, 2)
    smaller.double()
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(smaller(TOKENS), masked(model, KEPT), rtol=0, atol=1e-5)
        assert not torch.allclose(smaller(TOKENS), model(TOKENS), atol=1e-2)


def test_fewer_experts_than_a_token_uses_lower_that_number() -> None:
    assert prune(MODEL, ((1,), (4,))).config.experts_per_token == 1


def brute_force(model: Decoder, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Routing mass and REAP, token by token and expert by expert."""
    token_BT, target_BT = stack_rows(rows, max(len(row.ids) for row in rows) - 1)
    mass, norms = torch.zeros(2, 2, 6, dtype=torch.float64)
    seen = torch.zeros(2, 6, dtype=torch.float64)
    inputs: list[Tensor] = []
    hooks = [
        b.experts.register_forward_pre_hook(lambda m, x: inputs.append(x[0])) for b in model.blocks
    ]
    with torch.no_grad():
        model.hidden(token_BT)
    for hook in hooks:
        hook.remove()
    for layer, (block, x_BTD) in enumerate(zip(model.blocks, inputs, strict=True)):
        assert isinstance(block, Block)
        bank = block.experts
        for b, t in (target_BT != IGNORED).nonzero():
            x = x_BTD[b, t]
            top = (bank.router.weight @ x).topk(2)
            weights = top.values.softmax(0)
            for expert, weight in zip(top.indices.tolist(), weights.tolist(), strict=True):
                gate, up = (bank.gate_up.weight[expert] @ x).chunk(2)
                out = bank.down.weight[expert] @ (torch.nn.functional.silu(gate) * up)
                mass[layer, expert] += weight
                norms[layer, expert] += weight * float(out.detach().norm())
                seen[layer, expert] += 1
    return mass, norms / seen.clamp_min(1)


def test_routing_mass_and_reap_by_brute_force() -> None:
    rows = [Row(ROWS[0].ids, 0, context=4), *ROWS[1:3]]  # context and padding do not count
    use = expert_use(MODEL, rows)
    mass, reap = brute_force(MODEL, rows)
    torch.testing.assert_close(use.mass_LE, mass, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(use.reap_LE, reap, rtol=1e-5, atol=1e-6)
    assert (mass == 0).any() or (reap > 0).all()
    assert float(use.mass_LE[0].sum()) == pytest.approx(
        sum(len(r.ids) - 1 - r.context for r in rows)
    )


def test_likeness_is_the_correlation_of_router_logits() -> None:
    found: list[Tensor] = []
    router = MODEL.blocks[1].experts.router
    hook = router.register_forward_hook(lambda m, x, y: found.append(y))
    use = expert_use(MODEL, ROWS[:1])
    hook.remove()
    expected = torch.corrcoef(found[0][0].double().T)
    torch.testing.assert_close(use.likeness_LEE[1], expected, rtol=1e-6, atol=1e-8)


def test_best_takes_the_highest_and_the_first_of_equals() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert best(((0, 1, 2, 3), (0, 1, 3)), score, 2) == ((1, 2), (0, 1))
    with pytest.raises(VariantError, match="1 to 3 experts"):
        best(((0, 1, 2, 3), (0, 1, 3)), score, 4)


def test_merging_is_the_mass_weighted_average_with_the_most_alike() -> None:
    use = expert_use(MODEL, ROWS)
    merged = merge(MODEL, KEPT, use)
    for layer, kept in enumerate(KEPT):
        bank, source = merged.blocks[layer].experts, MODEL.blocks[layer].experts
        mass, likeness = use.mass_LE[layer], use.likeness_LEE[layer]
        for place, expert in enumerate(kept):
            group = [expert] + [
                e for e in range(6)
                if e not in kept and max(kept, key=lambda k: float(likeness[e, k])) == expert
            ]  # fmt: skip
            total = sum(float(mass[e]) for e in group)
            for own, parents in ((bank.down, source.down), (bank.gate_up, source.gate_up)):
                expected = sum(float(mass[e]) / total * parents.weight[e] for e in group)
                torch.testing.assert_close(own.weight[place], expected)
            assert torch.equal(bank.router.weight[place], source.router.weight[expert])


def test_merging_copies_of_one_expert_gives_that_expert() -> None:
    twins = decoder("qwen3moe", experts=6, experts_per_token=2)
    for block in twins.blocks:
        for weight in block.experts.parameters():
            weight.data[3:] = weight.data[:3]
    kept = ((0, 1, 2),) * 2
    merged = merge(twins, kept, expert_use(twins, ROWS))
    for block, whole in zip(merged.blocks, twins.blocks, strict=True):
        torch.testing.assert_close(block.experts.down.weight, whole.experts.down.weight[:3])


def parent(model: Decoder = MODEL) -> Parent:
    return Parent("p", model, WORDS, model_digest(model), OWNERS)


def text(name: str = "wards") -> PublicText:
    return PublicText(name, "invented", "CC0", tuple(TEXTS), {})


def test_owners_keep_their_own_and_the_bases() -> None:
    assert of_owners(MODEL, OWNERS, ["ward"]) == ((0, 1, 4, 5),) * 2
    assert of_owners(MODEL, None, []) == everything(MODEL.config)
    with pytest.raises(VariantError, match="among court, public, ward, got clinic"):
        of_owners(MODEL, OWNERS, ["clinic"])
    chosen = select(parent(), Choice(owners=("ward",)), None, Wanted("edge"))
    assert {(s.owner, s.experts) for s in parent().shares(chosen.inside)} == {
        ("public", 4), ("ward", 4),
    }  # fmt: skip
    assert chosen.plans[0].experts == 4


def test_nothing_of_an_owner_who_is_left_out_goes_in() -> None:
    changed = decoder("qwen3moe", experts=6, experts_per_token=2)
    for block in changed.blocks:
        block.experts.down.weight.data[2:4] = 7.0  # the court's
        block.experts.router.weight.data[2:4] = 7.0
    choice = Choice(owners=("ward",), experts=3, merged=True)
    first, second = (
        select(parent(model), choice, text(), Wanted("edge")) for model in (MODEL, changed)
    )
    assert model_digest(first.source.model) == model_digest(second.source.model)
    assert {share.owner for share in parent().shares(first.inside)} == {"public", "ward"}


def test_a_size_limit_takes_the_most_experts_that_fit() -> None:
    whole = select(parent(), Choice(), None, Wanted("edge", bits=8)).plans[0].file_bytes
    target = Target(most_bytes=whole - 1)
    found = select(parent(), Choice(), text(), Wanted("edge", bits=8, target=target))
    assert found.plans[0].experts == 5
    assert found.plans[0].file_bytes <= target.most_bytes
    assert found.kept == best(everything(MODEL.config), expert_use(MODEL, ROWS_OF_TEXT).reap_LE, 5)
    with pytest.raises(VariantError, match="2 of 6 experts as the nearest"):
        select(parent(), Choice(), text(), Wanted("edge", target=Target(most_bytes=1000)))


ROWS_OF_TEXT = [row for rows in WORDS.rows(TEXTS, 127, None) for row in rows]


@pytest.mark.parametrize(
    ("choice", "domain", "said"),
    [
        (Choice(experts=3), None, "Expected --domain with --experts"),
        (Choice(), text(), "Expected --experts, --max-bytes or --max-memory"),
        (Choice(merged=True), None, "Expected --domain with --merge"),
        (Choice(experts=7), text(), "1 to 6 experts per layer, got 7"),
        (Choice(owners=("ward",), experts=5), text(), "1 to 4 experts to keep, got 5"),
    ],
)
def test_choices_that_nothing_decides_are_refused(
    choice: Choice, domain: PublicText | None, said: str
) -> None:
    with pytest.raises(VariantError, match=said):
        select(parent(), choice, domain, Wanted("edge"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "Expected public.toml in it, got none"),
        ({"public.toml": 'name = "x"\nsource = "y"\n'}, "got licence: Field required"),
        ({"public.toml": "name ="}, "Expected name, source and licence"),
        ({"public.toml": 'name = "a|b"\nsource = "y"\nlicence = "z"\n'}, "got name"),
        (
            {
                "public.toml": 'name = "x"\nsource = "y"\nlicence = "z"\n',
                "data.toml": 'text_fields = ["text"]\nunit_field = "patient"\n',
            },
            "'patient' names whose data",
        ),
    ],
)
def test_text_that_does_not_say_it_is_public_is_refused(
    files: dict[str, str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "words", "patient": "p1"}\n')
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_public_text(tmp_path)
