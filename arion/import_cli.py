"""`arion model import`: a Hugging Face folder becomes a model folder of ours."""

import json
from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from arion.model_import import DTYPES, Growth, check_places, import_model
from arion.options import Json
from arion.progress import make_progress

_PER_TOKEN = 2


Source = Annotated[
    Path,
    typer.Argument(metavar="PATH", help="Folder with config.json, safetensors and tokenizer.json."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the model goes.")]
Experts = Annotated[
    int | None, typer.Option(metavar="N", help="Copy a dense model's feed-forward N times.")
]
ExpertsPerToken = Annotated[
    int | None, typer.Option(metavar="K", help="With --experts.", show_default=str(_PER_TOKEN))
]
Noise = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="With --experts: perturb all copies but the first by S standard deviations of each "
        "matrix. This changes what the model computes.",
        show_default="0",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="With --experts: of router rows and noise.", show_default="0"),
]
Dtype = Annotated[str, typer.Option(metavar="|".join(DTYPES), help="Of the written weights.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace the model folder at DIR.")]


def import_command(  # noqa: PLR0917  (its options are its interface)
    source: Source,
    out: Out,
    experts: Experts = None,
    experts_per_token: ExpertsPerToken = None,
    noise: Noise = None,
    seed: Seed = None,
    dtype: Dtype = "float32",
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Bring in a local Qwen3, Qwen3-MoE, Llama 3 or Mixtral folder; the function is kept.

    A dense model becomes one expert per layer, or with --experts several equal ones behind a
    random router, which compute the same until training makes them differ.

    Example: arion model import Llama-3.2-1B --out models/llama --experts 8
    """
    with user_errors():
        growth = _growth(experts, experts_per_token, noise, seed)
        if dtype not in DTYPES:
            raise ValueError(f"Expected --dtype out of {', '.join(DTYPES)}, got {dtype!r}.")
        check_places(source, out, replace=replace)
        progress = make_progress()
        try:
            done = import_model(source, out, growth, dtype, progress)
        finally:
            progress.close()
    typer.echo(json.dumps(done, indent=2) if as_json else _told(done))


def _growth(
    experts: int | None, per_token: int | None, noise: float | None, seed: int | None
) -> Growth | None:
    if experts is None:
        if (per_token, noise, seed) != (None, None, None):
            raise ValueError(
                "Expected --experts with --experts-per-token, --noise or --seed, got none. "
                "Add --experts N."
            )
        return None
    chosen = min(_PER_TOKEN, experts) if per_token is None else per_token
    return Growth(experts, chosen, noise or 0.0, seed or 0)


def _told(done: dict[str, object]) -> str:
    lines = [
        f"{done['out']}: {done['family']} as {done['written_as']}, {done['dtype']}",
        f"{done['parameters']:,} parameters, {done['active_parameters']:,} active, "
        f"{done['experts_per_token']} of {done['experts']} experts per token",
    ]
    if done["largest_difference"] is not None:
        lines.append(
            f"logits differ from the dense model's by {done['largest_difference']:.1e} of their "
            "standard deviation at most"
        )
    if done["tokenizer_is_small"]:
        lines.append(
            f"WARNING: the tokenizer has {done['tokenizer_tokens']:,} of the model's "
            f"{done['vocabulary']:,} tokens. Does it belong to the model?"
        )
    if not done["function_kept"]:
        lines.append("The function was changed, by noise or by rounding.")
    return "\n".join(lines)
