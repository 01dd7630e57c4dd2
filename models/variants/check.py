"""An artefact, run: its weights and its runtime's figures, and what keeps it from being published.

Three models take part: the whole parent, the exact model that was exported (the parent, or some of
its experts), and the stored one, which has the artefact's own weights, expanded. The artefact is
right if its weights are the exact model's up to rounding, and its runtime computes what the stored
model computes. What the rounding costs is its quality beside the parent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.decoder import Decoder
from models.formats.shards import Advance
from models.tokenizer import Row, Tokenizer
from models.variants.compare import (
    SAMPLES,
    SAMPLES_NAME,
    Difference,
    compare,
    sample_rows,
    unequal_tokens,
)
from models.variants.kinds import KINDS, Opening, files_of
from models.variants.plan import Plan, Target
from models.variants.probe import Probe, probe
from models.variants.readback import Readback
from models.variants.rounding import RoundedDecoder

LENGTH = 128
_ROWS = 64  # of each held-out text, spread over it
_FIDELITY_ROWS = 8
# A runtime that computes in fp32 differs by the order of its sums: by so much where logits are at
# most 1, and by this share of the largest where they are larger.
EXACT_LOGITS = 1e-4
# llama.cpp and ONNX Runtime round activations beside rounded weights. On a model of 12.7
# million trained parameters that made medians of at most 2.7e-4 nats in any format; means reached
# 4e-3, where an expert near a tie was chosen otherwise. On a published one of 135 million in
# thirty layers (SmolLM2; by hand) it made 3.8e-3 (Q8_0), 7.4e-3 (Q4_K_M) and 4.2e-3 (ONNX int8), 1
# to 2 times what rounding in the decoder itself costs it (3.6e-3 at Q8_0, 4.2e-3 at Q4_K_M).
RUNTIME_KL = 1e-3
ROUNDING_FACTOR = 3.0
MOST_KL = 0.1  # whatever rounding costs; another rope base made 8 nats in a test's model


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        parent: the whole model, on CPU in fp32. model: the same, or one of some of its experts.

    """

    parent: Decoder
    model: Decoder
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Checked:
    """What a run of an artefact showed.

    Attributes:
        runtime: name and version. unequal: texts that its tokenizer cuts otherwise.
        coarse: tensors that are further from the exact model's than their number type allows.
        fidelity: beside the stored model, in the runtime's most precise arithmetic, by text.
        quality: beside the whole parent, in the runtime's usual arithmetic, by text.
        file_bytes: of all files.
        rounding_kl: median KL that activations in 8 bits cost the stored model, nats, by text;
            empty where the runtime keeps more of them.

    """

    runtime: str
    unequal: tuple[str, ...]
    coarse: tuple[str, ...]
    fidelity: Mapping[str, Difference]
    quality: Mapping[str, Difference]
    file_bytes: int
    probe: Probe
    rounding_kl: Mapping[str, float] = field(default_factory=dict)


def spread_rows(
    tokenizer: Tokenizer, documents: Sequence[str], length: int, most: int
) -> list[Row]:
    """Cut documents into rows and return at most so many, spread evenly."""
    rows = [row for each in tokenizer.rows(documents, length, None) for row in each]
    count = min(most, len(rows))
    return [rows[at * len(rows) // count] for at in range(count)]


def run_artefact(
    plan: Plan,
    folder: Path,
    source: Source,
    heldout: Mapping[str, Sequence[str]],
    advance: Advance = lambda done, total: None,
) -> Checked:
    """Read an artefact back, run it in its runtime, and measure.

    Args:
        heldout: public documents by name; the built-in samples are compared in any case.
        advance: called with (rows compared, rows in all).

    Raises:
        MissingExtraError: the runtime is not installed.
        VariantError: the artefact cannot be read, or does not run.

    """
    kind, tokenizer = KINDS[plan.container], source.tokenizer
    length = min(LENGTH, plan.context - 1)
    rows = {SAMPLES_NAME: sample_rows(tokenizer, length)}
    rows |= {name: spread_rows(tokenizer, t, length, _ROWS) for name, t in heldout.items()}
    few = {name: part[:_FIDELITY_ROWS] for name, part in rows.items()}
    total, first = sum(map(len, (*rows.values(), *few.values()))), sum(map(len, few.values()))
    begin = tokenizer.begin_of_text_id
    cost = probe(plan.container, folder, plan.context, begin)  # a crash of it is not ours
    exact = kind.open(folder, Opening(length + 1, begin, exact=True))
    stored = kind.read_back(folder, source.model)
    fidelity = compare(stored.model, exact, few, lambda done, _: advance(done, total))
    exact.close()
    rounded = compare(stored.model, RoundedDecoder(stored.model), few) if _rounds(plan) else {}
    usual = kind.open(folder, Opening(length + 1, begin))
    texts = [*SAMPLES, *(text for documents in heldout.values() for text in documents[:_ROWS])]
    unequal = unequal_tokens(tokenizer, usual, texts)
    quality = compare(source.parent, usual, rows, lambda done, _: advance(first + done, total))
    usual.close()
    return Checked(
        runtime=usual.name,
        unequal=tuple(unequal),
        coarse=tuple(_coarse(stored)),
        fidelity=fidelity,
        quality=quality,
        file_bytes=sum(path.stat().st_size for path in files_of(folder)),
        probe=cost,
        rounding_kl={name: each.median_kl for name, each in rounded.items()},
    )


def failures(found: Checked, plan: Plan, target: Target) -> tuple[str, ...]:
    """Say everything that keeps an artefact from being published; nothing where it may be."""
    return (*_broken(found, plan), *_missed(found, plan, target))


def _rounds(plan: Plan) -> bool:
    """Whether the runtime rounds activations to 8 bits beside these weights."""
    return plan.container != "hf" and plan.number_format not in ("f32", "f16", "bf16")


def _broken(found: Checked, plan: Plan) -> Iterator[str]:
    if found.unequal:
        yield (
            f"token ids differ from the parent's on {len(found.unequal)} text(s), first "
            f"{found.unequal[0][:40]!r}"
        )
    yield from found.coarse
    exact = plan.number_format == "f32" or plan.container == "hf"
    for name, each in found.fidelity.items():
        most = EXACT_LOGITS * max(1.0, each.scale)
        if exact and not each.largest <= most:  # not a number fails too
            yield f"{name}: logits {each.largest:.1e} from the stored weights', over {most:.1e}"
        allowed = _allowed_kl(found.rounding_kl.get(name, 0.0))
        if not each.median_kl <= allowed:
            yield (
                f"{name}: median KL {each.median_kl:.1e} nats from the stored weights', over "
                f"{allowed:.1e}"
            )


def _allowed_kl(rounding_kl: float) -> float:
    """Return the largest median KL; a cost that is no number allows nothing beyond the usual."""
    if not math.isfinite(rounding_kl):
        return RUNTIME_KL
    return min(max(RUNTIME_KL, ROUNDING_FACTOR * rounding_kl), MOST_KL)


def _missed(found: Checked, plan: Plan, target: Target) -> Iterator[str]:
    most = plan.file_bytes if target.most_bytes is None else target.most_bytes
    if found.file_bytes > most:
        yield f"{found.file_bytes:,} bytes, over {most:,}"
    resident, speed = found.probe.resident_bytes, found.probe.tokens_per_s
    if target.most_memory is not None and resident is None:
        yield "resident memory cannot be measured on this system, so a limit cannot be kept to"
    elif target.most_memory is not None and resident > target.most_memory:  # type: ignore[operator]
        yield f"{resident:,} bytes in memory, over {target.most_memory:,}"
    if target.least_speed is not None and speed < target.least_speed:
        yield f"{speed:.1f} tokens/s, under {target.least_speed:.1f}"
    if target.most_loss_rise is not None:
        for name, each in found.quality.items():
            if name != SAMPLES_NAME and not each.loss_rise <= target.most_loss_rise:
                yield (
                    f"{name}: loss {each.loss_rise:.4f} nats per token above the parent's, over "
                    f"{target.most_loss_rise}"
                )


def _coarse(stored: Readback) -> Iterator[str]:
    for each in stored.roundings:
        if not each.error <= each.limit:
            yield f"{each.name} is {each.error:.1e} of its range off, over {each.limit:.1e}"
