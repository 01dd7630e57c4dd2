"""What each format and each choice of experts costs beside its parent, and how fast it decodes.

    ARION_VARIANTS_MODEL=WORK/model python -m benchmarks.variants

WORK is what `python -m benchmarks.variants_model WORK` made; --quick takes a small random model,
whose figures say that everything runs and nothing else. Every artefact passes the gate of `arion
model export`, or its rows are missing and the reason is printed.

Formats: divergence, agreement and loss on held-out text of five domains. Speed: decoding one text
in the artefact's runtime; the peer is the parent in PyTorch (`models.generate`), the limit a dense
model in the same format and runtime, as wide as the experts that a token uses. Experts: half of
each layer's, chosen on a domain's training text; the value is the rise of its held-out loss, the
peer's is the mean rise of three random halves.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from arion.progress import make_progress
from benchmarks.composition_data import LENGTH, read_texts
from benchmarks.harness import Row, context, main
from benchmarks.variants_model import data_folder
from models.checkpoint import load_model
from models.config import preset
from models.decoder import Decoder
from models.evaluate import evaluate
from models.generate import Settings, generate
from models.tokenizer import Row as TextRow
from models.tokenizer import Tokenizer
from models.variants.check import Checked, Source, failures, run_artefact, spread_rows
from models.variants.compare import SAMPLES, SAMPLES_NAME
from models.variants.dense import dense_config
from models.variants.experts import best, everything, expert_use, merge, prune
from models.variants.extras import VariantError
from models.variants.kinds import KINDS
from models.variants.plan import Plan, Target, Wanted, fitting_plans
from models.variants.probe import probe

PACKAGES = ("torch", "gguf", "llama-cpp-python", "onnxruntime", "transformers")
PEER, RANDOM = "parent in PyTorch", "random halves"
LIMIT = "dense, as many active parameters"
_HELDOUT_ROWS, _CALIBRATION_ROWS = 120, 256
_DECODED = 64
_SEEDS = (0, 1, 2)
Texts = Mapping[str, Sequence[str]]


def run(quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    model, tokenizer, train, heldout = quick_ground() if quick else ground()
    # Experts first: they are minutes, formats are many.
    yield from _experts(model, tokenizer, train, heldout)
    yield from _formats(model, tokenizer, heldout, quick)


def ground() -> tuple[Decoder, Tokenizer, Texts, Texts]:
    place = os.environ.get("ARION_VARIANTS_MODEL")
    if place is None or not Path(place).is_dir():
        raise SystemExit(
            "Expected a model folder in ARION_VARIANTS_MODEL, got none. Make one with `python -m "
            "benchmarks.variants_model WORK` and name WORK/model."
        )
    texts = read_texts(data_folder())
    return *load_model(Path(place)), texts.train, texts.heldout


def quick_ground() -> tuple[Decoder, Tokenizer, Texts, Texts]:
    texts = {"prose": SAMPLES[:4] * 3, "code": SAMPLES[5:] * 3}
    tokenizer = Tokenizer.train(SAMPLES, 320)
    config = preset("nano").model_copy(update={"vocab_size": tokenizer.vocab_size})
    return Decoder(config, torch.Generator().manual_seed(0)), tokenizer, texts, texts


def _formats(model: Decoder, tokenizer: Tokenizer, heldout: Texts, quick: bool) -> Iterator[Row]:
    peer_speed, dense = _parent_speed(model, tokenizer), _equally_active(model)
    progress = make_progress()
    for wanted in _wanted(quick):
        try:
            for plan in fitting_plans(model.config, model.config.experts, tokenizer, wanted):
                found = _run(plan, model, tokenizer, heldout)
                limit = _speed(plan, dense, tokenizer)
                yield from _format_rows(plan, found, (peer_speed, limit), model)
        except VariantError as error:
            progress.note(f"{wanted.container}, {wanted.bits} bits: {error}")
    progress.close()


def _wanted(quick: bool) -> Iterator[Wanted]:
    """All formats; in a quick run those of the fewest bits that any model can have."""
    for name, kind in KINDS.items():
        for bits in kind.number_formats:
            if not quick or bits == (16 if name == "hf" else min(kind.number_formats)):
                yield Wanted("edge", name, bits)


def _equally_active(model: Decoder) -> Decoder:
    """A dense model that does this one's work for a token but routing; weights are random."""
    config = dense_config(model.config, model.config.experts_per_token, model.config.layers)
    return Decoder(config, torch.Generator().manual_seed(0))


def _run(plan: Plan, model: Decoder, tokenizer: Tokenizer, heldout: Texts) -> Checked:
    with _written(plan, model, tokenizer) as place:
        texts = {name: documents[:_HELDOUT_ROWS] for name, documents in heldout.items()}
        found = run_artefact(plan, place, Source(model, model, tokenizer), texts)
    if failed := failures(found, plan, Target()):
        raise VariantError("; ".join(failed))
    return found


def _speed(plan: Plan, model: Decoder, tokenizer: Tokenizer) -> float:
    with _written(plan, model, tokenizer) as place:
        return probe(plan.container, place, plan.context, tokenizer.begin_of_text_id).tokens_per_s


@contextmanager
def _written(plan: Plan, model: Decoder, tokenizer: Tokenizer) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artefact"
        KINDS[plan.container].write(model, tokenizer, place, plan.number_format, lambda *done: None)
        yield place


def _format_rows(
    plan: Plan, found: Checked, speeds: tuple[float, float], model: Decoder
) -> Iterator[Row]:
    """Yield an artefact's rows; `speeds` are the parent's and the dense model's."""
    name = f"{plan.container} {plan.number_format}"
    domains = [each for text, each in found.quality.items() if text != SAMPLES_NAME]
    tokens = sum(each.tokens for each in domains)
    facts = context(
        PACKAGES,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokens=tokens,
        loss_rise={text: each.loss_rise for text, each in found.quality.items()},
        runtime_kl_mean={text: each.kl for text, each in found.fidelity.items()},
        runtime_kl_median={text: each.median_kl for text, each in found.fidelity.items()},
        runtime_largest_logit=max(each.largest for each in found.fidelity.values()),
        resident_bytes=found.probe.resident_bytes,
    )
    yield Row(f"{name}: size", found.file_bytes, "bytes", context=facts)
    kl = sum(sum(each.kl_T) for each in domains) / tokens
    yield Row(f"{name}: KL", kl, "nats/token", context=facts)
    agreed = sum(each.agreed for each in domains) / tokens
    yield Row(f"{name}: top-1 agreement", agreed, "share", context=facts)
    rise = sum(each.nats - each.model_nats for each in domains) / tokens
    yield Row(f"{name}: loss above the parent's", rise, "nats/token", context=facts)
    speed, (peer, limit) = found.probe.tokens_per_s, speeds
    yield Row(
        f"{name}: decoding", speed, "tokens/s", PEER, peer, speed / peer,
        LIMIT, limit, speed / limit, context=facts,
    )  # fmt: skip


def _parent_speed(model: Decoder, tokenizer: Tokenizer) -> float:
    """Decode as the artefacts do: from begin-of-text, the best of three tries."""
    settings, seconds = Settings(max_new_tokens=_DECODED), list[float]()
    for _ in range(3):
        started = time.perf_counter()
        (text,) = generate(model, tokenizer, [""], settings)
        seconds.append((time.perf_counter() - started) / len(text.tokens))
    return 1 / min(seconds)


def _experts(model: Decoder, tokenizer: Tokenizer, train: Texts, heldout: Texts) -> Iterator[Row]:
    half = model.config.experts // 2
    rows = {name: spread_rows(tokenizer, t, LENGTH, _HELDOUT_ROWS) for name, t in heldout.items()}
    whole = {name: _loss(model, part) for name, part in rows.items()}
    chance = [prune(model, _random_half(model, seed)) for seed in _SEEDS]
    for name, documents in train.items():
        use = expert_use(model, spread_rows(tokenizer, documents, LENGTH, _CALIBRATION_ROWS))
        every = everything(model.config)
        by_reap, by_mass = best(every, use.reap_LE, half), best(every, use.mass_LE, half)
        at_random = [_loss(each, rows[name]) - whole[name] for each in chance]
        for how, reduced in (
            ("REAP", prune(model, by_reap)),
            ("routing mass", prune(model, by_mass)),
            ("routing mass, merged", merge(model, by_mass, use)),
        ):
            rise = _loss(reduced, rows[name]) - whole[name]
            mean = statistics.fmean(at_random)
            yield Row(
                f"half of the experts by {how}: {name}", rise, "nats/token", RANDOM, mean,
                mean / rise if rise > 0 else None, context=context(
                    PACKAGES, parent_loss=whole[name], random_halves=at_random,
                    other_domains={
                        other: _loss(reduced, part) - whole[other] for other, part in rows.items()
                    },
                ),
            )  # fmt: skip


def _random_half(model: Decoder, seed: int) -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    scores_LE = torch.rand(config.layers, config.experts, generator=generator)
    return best(everything(config), scores_LE, config.experts // 2)


def _loss(model: Decoder, rows: Sequence[TextRow]) -> float:
    return evaluate(model, rows).nats_per_token


if __name__ == "__main__":
    main(run)
