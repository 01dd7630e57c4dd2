"""What to make for a tier, so that it fits: precise number formats first.

Sizes are computed from the model's shape before anything is written; how fast an artefact runs and
what memory it takes is known once it ran, so plans are carried out in order until one holds.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from models.config import ModelConfig
from models.tokenizer import Tokenizer
from models.variants.extras import VariantError
from models.variants.kinds import KINDS
from models.variants.names import Container

Tier = Literal["edge", "mobile", "cluster"]
TIERS: tuple[Tier, ...] = get_args(Tier)
BITS = (4, 8, 16, 32)
# What a tier is made as, the first unless another is asked for, and the bits that it may have, most
# first. A folder has 8 bits only where that is asked for: few processors compute in fp8.
_TIERS: dict[Tier, dict[Container, tuple[int, ...]]] = {
    "edge": {"gguf": (4,), "onnx": (4,), "hf": (16,)},
    "mobile": {"gguf": (8, 4), "onnx": (8,), "hf": (16,)},
    "cluster": {"hf": (16,), "gguf": (16,), "onnx": (8,)},
}
_USUAL_CONTEXT = 2048


@dataclass(frozen=True)
class Target:
    """What an artefact must keep to; None where anything will do.

    Attributes:
        most_bytes: of all its files. most_memory: bytes resident, after a text of `context` tokens.
        least_speed: tokens/s of decoding one text.
        most_loss_rise: nats per token above the parent's loss, on each held-out text.

    """

    most_bytes: int | None = None
    most_memory: int | None = None
    least_speed: float | None = None
    most_loss_rise: float | None = None


@dataclass(frozen=True)
class Wanted:
    """What was asked for; container and bits None: the tier's own.

    Attributes:
        context: tokens that the runtime must hold; None for the model's, at most 2048.

    """

    tier: Tier
    container: Container | None = None
    bits: int | None = None
    context: int | None = None
    target: Target = Target()


@dataclass(frozen=True)
class Plan:
    """One artefact that could be made.

    Attributes:
        number_format: of the matrices. experts: per layer. parent_experts: before.
        joined: the parent's experts that a layer's only one was joined of; None where sparse.
        file_bytes: of all files, at most. cache_bytes: of keys and values of `context` tokens.

    """

    tier: Tier
    container: Container
    number_format: str
    experts: int
    parent_experts: int
    context: int
    file_bytes: int
    cache_bytes: int
    joined: int | None = None

    @property
    def memory_bytes(self) -> int:
        """What the runtime holds at least: files and cache."""
        return self.file_bytes + self.cache_bytes

    @property
    def name(self) -> str:
        """For people."""
        kind = f"{self.container} {self.number_format}"
        if self.joined is not None:
            return f"{kind}, dense of {self.joined} of {self.parent_experts} experts"
        experts = f", {self.experts} of {self.parent_experts} experts"
        return f"{kind}{experts * (self.parent_experts > 1)}"


class TooLargeError(VariantError):
    """No plan fits a limit."""


def fitting_plans(
    config: ModelConfig,
    parent_experts: int,
    tokenizer: Tokenizer,
    wanted: Wanted,
    joined: int | None = None,
) -> tuple[Plan, ...]:
    """Return the plans that fit, the most precise first.

    Args:
        config: of the model that is exported, its experts already chosen.
        parent_experts: per layer, before. joined: see `Plan`.

    Raises:
        TooLargeError: nothing fits, said with what comes nearest.
        VariantError: no number format of so many bits;
            a tokenizer or an architecture that the container does not have.

    """
    plans = _plans(config, parent_experts, tokenizer, wanted, joined)
    target = wanted.target
    found = tuple(
        plan
        for plan in plans
        if (target.most_bytes is None or plan.file_bytes <= target.most_bytes)
        and (target.most_memory is None or plan.memory_bytes <= target.most_memory)
    )
    if found:
        return found
    nearest = min(plans, key=lambda plan: plan.memory_bytes)
    raise TooLargeError(
        f"Expected an artefact of {_limits(target)}, got {nearest.name} as the nearest: "
        f"{nearest.file_bytes:,} bytes of files, {nearest.memory_bytes:,} in memory with "
        f"{nearest.context} tokens. Raise the limit, lower --bits or --context, or keep fewer "
        "experts."
    )


def _plans(
    config: ModelConfig,
    parent_experts: int,
    tokenizer: Tokenizer,
    wanted: Wanted,
    joined: int | None,
) -> list[Plan]:
    usual = _TIERS[wanted.tier]
    container = next(iter(usual)) if wanted.container is None else wanted.container
    kind = KINDS[container]
    bits = usual[container] if wanted.bits is None else (wanted.bits,)
    formats = [each for width in bits for each in kind.number_formats.get(width, ())]
    if not formats:
        raise VariantError(
            f"Expected --bits out of {', '.join(map(str, sorted(kind.number_formats)))} for "
            f"{container}, got {bits[0]}. Choose one, or another --format."
        )
    context = wanted.context or min(config.max_positions, _USUAL_CONTEXT)
    if context > config.max_positions:
        raise VariantError(
            f"Expected a context of at most {config.max_positions} tokens, the model's positions, "
            f"got {context}. Lower --context."
        )
    numbers = 2 * config.layers * config.kv_heads * config.head_dim * context
    return [
        Plan(
            tier=wanted.tier,
            container=container,
            number_format=each,
            experts=config.experts,
            parent_experts=parent_experts,
            context=context,
            file_bytes=kind.size(config, tokenizer, each),
            cache_bytes=numbers * kind.cache_width(each),
            joined=joined,
        )
        for each in formats
    ]


def _limits(target: Target) -> str:
    parts = []
    if target.most_bytes is not None:
        parts.append(f"at most {target.most_bytes:,} bytes")
    if target.most_memory is not None:
        parts.append(f"at most {target.most_memory:,} bytes in memory")
    return " and ".join(parts)
