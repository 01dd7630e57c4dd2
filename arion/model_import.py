"""Bringing a Hugging Face folder in: read exactly, grown where asked, written as our folder."""

from dataclasses import dataclass
from pathlib import Path

import torch

from arion.progress import Progress, Stage
from models.checkpoint import inspect_model, load_model, model_digest, save_model, written_as
from models.composition import SIDECAR
from models.counts import parameter_counts
from models.decoder import Decoder
from models.upcycle import upcycle

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_COMPARED_TOKENS = 32
_FEW = 0.9  # published ones round a vocabulary up, by a few hundredths


@dataclass(frozen=True)
class Growth:
    """How a dense model becomes sparse: see `models.upcycle.upcycle`.

    Attributes:
        seed: of router rows and noise; public.

    """

    experts: int
    experts_per_token: int
    noise: float
    seed: int


def check_places(source: Path, out: Path, *, replace: bool) -> None:
    """Refuse to write over something, or into the source.

    Raises:
        ValueError: no such source, or `out` is taken.

    """
    if not source.is_dir():
        raise ValueError(f"Expected a model folder, got {source}. Download it first.")
    here, there = source.resolve(), out.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ValueError(f"Expected --out apart from {source}, got {out}. Choose another place.")
    if (source / SIDECAR).exists():
        raise ValueError(
            f"Expected another's model, got {source}, whose experts have owners already. It is a "
            "model folder as it is."
        )
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not replace:
        raise ValueError(
            f"Expected an empty or no folder at {out}, got one in use. Choose another place, or "
            "replace a model with --replace."
        )
    if taken and not _is_plain_model(out):
        raise ValueError(
            f"Expected a model folder to replace at {out}, got something else. Remove it yourself."
        )


def _is_plain_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and all(path.is_file() for path in folder.iterdir())


def import_model(
    source: Path, out: Path, growth: Growth | None, dtype: str, progress: Progress
) -> dict[str, object]:
    """Read a folder of another model and write it as ours.

    Args:
        source: a folder that `models.checkpoint.load_model` reads.
        out: appears whole or not at all; checked by `check_places`.
        growth: None keeps the number of experts.
        dtype: of the written weights, out of DTYPES.

    Returns:
        What was done, for people and programs. `function_kept`: logits before training are the
        source's, up to rounding of sums. `largest_difference`: between the logits before and after
        growing, relative to their standard deviation, on random tokens; None where nothing grew.
        `tokenizer_is_small`: it has so few of the vocabulary's tokens that it may be another
        model's.

    Raises:
        ValueError: a folder that cannot be read, or a growth that it does not allow.

    """
    found = inspect_model(source)
    model, tokenizer = load_model(source, Stage(progress, "reading tensors"))
    difference = None
    if growth is not None:
        dense, model = model, _grow(model, growth)
        _round(model, DTYPES[dtype])
        difference = logit_difference(dense, model, growth.seed)
        del dense
    _round(model, DTYPES[dtype])
    written = Stage(progress, "writing tensors")
    save_model(model, tokenizer, out, dtype=DTYPES[dtype], advance=written)
    exact = dtype == "float32" or {each.type for each in found.headers.values()} == {"BF16"}
    return {
        "out": str(out),
        "family": found.family.model_type,
        "dtype": dtype,
        "function_kept": exact and (growth is None or growth.noise == 0),
        "largest_difference": difference,
        "tokenizer_tokens": tokenizer.vocab_size,
        "tokenizer_is_small": tokenizer.vocab_size < _FEW * model.config.vocab_size,
        **_described(model),
    }


def _described(model: Decoder) -> dict[str, object]:
    counts = parameter_counts(model.config)
    return {
        "written_as": written_as(model).model_type,
        "vocabulary": model.config.vocab_size,
        "parameters": counts.total,
        "active_parameters": counts.active,
        "experts": model.config.experts,
        "experts_per_token": model.config.experts_per_token,
        "digest": model_digest(model),
    }


def _grow(model: Decoder, growth: Growth) -> Decoder:
    generator = torch.Generator().manual_seed(growth.seed)
    experts, per_token = growth.experts, growth.experts_per_token
    return upcycle(model, experts, per_token, generator, noise=growth.noise)


@torch.no_grad()
def _round(model: Decoder, dtype: torch.dtype) -> None:
    """Give the weights the values that they will have on disk."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))


@torch.no_grad()
def logit_difference(before: Decoder, after: Decoder, seed: int) -> float:
    """Largest difference of logits on random tokens, over their standard deviation before."""
    config = before.config
    length = min(_COMPARED_TOKENS, config.max_positions)
    generator = torch.Generator().manual_seed(seed)
    token_BT = torch.randint(config.vocab_size, (1, length), generator=generator)
    expected = before(token_BT)
    return float((after(token_BT) - expected).abs().max() / expected.std())
