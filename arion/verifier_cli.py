"""`arion model verifier`: train who chooses among answers, and measure the choice."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from arion.errors import user_errors
from arion.options import Json
from models.durable import file_digest
from models.effort.labelled import load_labelled
from models.effort.measure import Accuracy, measure
from models.effort.training import train_verifier
from models.effort.verifier import load_verifier, save_verifier

verifier_app = typer.Typer(no_args_is_help=True, help="Train who chooses among answers.")

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Lines of {question, solutions: [{solution, correct, model?}]}, .jsonl or .jsonl.gz.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the orders of answers.")]


@verifier_app.command("train")
def train_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write; there may be none yet.")],
    by_source: Annotated[
        bool,
        typer.Option(
            "--by-source",
            help="Let it ask which model wrote an answer: for several models, not for generate.",
        ),
    ] = False,
    auto_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Most of the length of all answers that --effort auto may draw on this data.",
        ),
    ] = 0.6,
    seed: Seed = 0,
) -> None:
    """Train a verifier on labelled answers; it reads the answers and runs nothing of them.

    Example: arion model verifier train answers.jsonl --out verifier/
    """
    with user_errors():
        if out.exists():
            raise ValueError(f"Expected no {out}, got one. Choose another --out, or remove it.")
        questions, generator = load_labelled(data), torch.Generator().manual_seed(seed)
        verifier = train_verifier(
            questions, generator, data_sha256=file_digest(data), by_source=by_source,
            auto_share=auto_share,
        )  # fmt: skip
        save_verifier(verifier, out)
    typer.echo(f"verifier of {len(questions)} questions written to {out}")


@verifier_app.command("evaluate")
def evaluate_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A verifier's folder.")],
    data: Data,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a verifier on labelled answers; use others than it was trained on.

    Example: arion model verifier evaluate verifier/ held-out.jsonl
    """
    with user_errors():
        verifier = load_verifier(path)
        if file_digest(data) == verifier.card.data_sha256:
            typer.echo("note: the verifier was trained on this very file", err=True)
        generator = torch.Generator().manual_seed(seed)
        found = measure(verifier, load_labelled(data), generator, lambda text: len(text.encode()))
    if as_json:
        typer.echo(json.dumps(_rows(found), indent=2))
        return
    for name, value in _rows(found).items():
        typer.echo(f"{name:>28}  {value:.3f}")


def _rows(found: Accuracy) -> dict[str, float]:
    return {
        "first answer": float(found.first_Q.mean()),
        "most frequent answer": float(found.majority_Q.mean()),
        "verifier, all answers": float(found.fixed_Q.mean()),
        "verifier, auto": float(found.auto_Q.mean()),
        "oracle": float(found.oracle_Q.mean()),
        "share of bytes, auto": float(found.auto_cost_Q.sum() / found.cost_Q.sum()),
    }
