"""Plans: sizes known before anything is written, precise formats first, refusals that help."""

from pathlib import Path

import pytest

from models.variants.extras import VariantError
from models.variants.kinds import KINDS, files_of
from models.variants.plan import Plan, Target, Wanted, fitting_plans
from tests.variants.models import decoder, named_tokenizer, tokenizer

pytest.importorskip("gguf")
MODEL = decoder("qwen3moe", hidden=256, expert_hidden_size=256)


def plans(wanted: Wanted) -> tuple[Plan, ...]:
    return fitting_plans(MODEL.config, 8, tokenizer(), wanted)


def names(wanted: Wanted) -> list[str]:
    return [plan.number_format for plan in plans(wanted)]


def test_tiers_have_their_own_formats_the_most_precise_first() -> None:
    assert names(Wanted("edge")) == ["q4_k_m", "q4_0"]
    assert names(Wanted("mobile")) == ["q8_0", "q4_k_m", "q4_0"]
    assert names(Wanted("cluster")) == ["bf16"]
    assert names(Wanted("cluster", container="gguf")) == ["f16", "bf16"]
    assert names(Wanted("edge", container="hf", bits=32)) == ["f32"]
    assert names(Wanted("mobile", container="hf")) == ["bf16"]  # fp8 is only made when asked for
    assert names(Wanted("mobile", container="hf", bits=8)) == ["fp8"]
    assert names(Wanted("cluster", container="onnx")) == ["int8"]
    for wanted in (Wanted("mobile"), Wanted("edge")):
        sizes = [plan.file_bytes for plan in plans(wanted)]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("container", "number_format"),
    [
        ("gguf", "f16"),
        ("gguf", "q8_0"),
        ("gguf", "q4_0"),
        ("hf", "f32"),
        ("hf", "bf16"),
        ("hf", "fp8"),
    ],
)
@pytest.mark.parametrize("pre", ["gpt-2", "qwen2"])
def test_what_is_written_is_as_large_as_planned_and_no_larger(
    container: str, number_format: str, pre: str, tmp_path: Path
) -> None:
    words = tokenizer() if pre == "gpt-2" else named_tokenizer(tmp_path / "t", pre)
    kind = next(each for name, each in KINDS.items() if name == container)
    kind.write(MODEL, words, tmp_path / "a", number_format, lambda done, total: None)
    written = sum(path.stat().st_size for path in files_of(tmp_path / "a"))
    planned = kind.size(MODEL.config, words, number_format)
    assert 0.97 * planned < written <= planned


def test_memory_is_files_and_the_cache_of_the_context() -> None:
    plan = plans(Wanted("edge", context=100))[0]
    config = MODEL.config  # keys and values of every layer, in fp16
    assert plan.cache_bytes == 2 * config.layers * config.kv_heads * config.head_dim * 100 * 2
    assert plan.memory_bytes == plan.file_bytes + plan.cache_bytes
    assert plan.context == 100
    assert plans(Wanted("edge"))[0].context == config.max_positions


def test_a_limit_takes_the_first_format_that_fits() -> None:
    large, middle, small = plans(Wanted("mobile"))
    for limit, first in ((large.file_bytes, "q8_0"), (large.file_bytes - 1, "q4_k_m")):
        assert names(Wanted("mobile", target=Target(most_bytes=limit)))[0] == first
    memory = Target(most_memory=middle.memory_bytes - 1)
    assert names(Wanted("mobile", target=memory)) == ["q4_0"]
    with pytest.raises(VariantError, match=rf"q4_0.*nearest: {small.file_bytes:,} bytes"):
        plans(Wanted("mobile", target=Target(most_bytes=small.file_bytes - 1)))


def test_what_cannot_be_planned_is_refused_with_a_remedy() -> None:
    with pytest.raises(VariantError, match="--bits out of 8, 16, 32 for hf, got 4"):
        plans(Wanted("cluster", bits=4))
    narrow = decoder("qwen3moe", hidden=256, expert_hidden_size=96).config
    with pytest.raises(VariantError, match="multiples of 128 for fp8"):
        fitting_plans(narrow, 8, tokenizer(), Wanted("cluster", bits=8))
    with pytest.raises(VariantError, match=r"at most 128 tokens.*got 129"):
        plans(Wanted("edge", context=129))
