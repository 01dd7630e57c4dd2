"""`arion model evaluate`: how well a model predicts text, file by file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from arion.documents import DocumentFile, read_documents
from arion.errors import user_errors
from arion.generate_cli import ExpertsPerToken, OnDevice, Threshold
from arion.progress import Progress, make_progress
from models.device import Device
from models.evaluate import Evaluation, evaluate
from models.experts import Activation
from models.folders import open_model
from models.language_model import LanguageModel
from models.tokenizer import Row, Tokenizer

_USUAL_LENGTH = 1024
_PIPED_WIDTH = 120


@dataclass(frozen=True)
class _Windows:
    """A file's documents, cut into rows."""

    documents: int
    rows: tuple[Row, ...]


def evaluate_command(  # noqa: PLR0917  (its options are its interface)
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model folder.")],
    data: Annotated[
        Path, typer.Option(help="A file or folder of text, JSON lines (field 'text') or Parquet.")
    ],
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a window.",
            show_default=f"the model's positions, at most {_USUAL_LENGTH}",
        ),
    ] = None,
    overlap: Annotated[
        int,
        typer.Option(min=0, help="Tokens of the window before that a window reads again."),
    ] = 0,
    experts_per_token: ExpertsPerToken = None,
    threshold: Threshold = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Windows of a pass.")] = 4,
    device: OnDevice = Device.CPU,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Evaluate a model on text: loss, perplexity and bits per byte, per file and in total.

    Every byte of every document is predicted once; longer documents are cut into windows.

    Example: arion model evaluate runs/h3/model --data heldout/ --overlap 512
    """
    with user_errors():
        device.check()
        activation = Activation(experts_per_token, threshold)
        files = read_documents(data)
        model, tokenizer = open_model(path)
        used = min(model.max_positions, _USUAL_LENGTH) if length is None else length
        windows = _cut(model, tokenizer, files, used, overlap)
        results = _evaluate(model.to(device), windows, batch, activation)
    asked = {
        "length": used, "overlap": overlap, "experts_per_token": experts_per_token,
        "threshold": threshold,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_as_json(windows, results) | asked, indent=2, ensure_ascii=False))
    else:
        _print(windows, results)


def _cut(
    model: LanguageModel,
    tokenizer: Tokenizer,
    files: tuple[DocumentFile, ...],
    length: int,
    overlap: int,
) -> dict[str, _Windows]:
    model.check_length(length)
    return {
        file.name: _Windows(
            len(file.texts),
            tuple(r for rows in tokenizer.rows(file.texts, length, None, overlap) for r in rows),
        )
        for file in files
    }


def _evaluate(
    model: LanguageModel, windows: Mapping[str, _Windows], batch: int, activation: Activation
) -> dict[str, Evaluation]:
    progress, results, before = make_progress(), dict[str, Evaluation](), 0
    progress.stage("evaluate", sum(len(each.rows) for each in windows.values()))
    try:
        for name, each in windows.items():
            tell = partial(_tell, progress, name, before)
            results[name] = evaluate(model, each.rows, batch, activation, tell)
            before += len(each.rows)
    finally:
        progress.close()
    return results


def _tell(progress: Progress, name: str, before: int, done: int) -> None:
    progress.step(before + done, name)


def _as_json(windows: Mapping[str, _Windows], results: Mapping[str, Evaluation]) -> dict[str, Any]:
    files = [{"file": name, **_figures(windows[name], result)} for name, result in results.items()]
    return {"files": files, "total": _figures(_joined(windows), reduce(add, results.values()))}


def _figures(windows: _Windows, result: Evaluation) -> dict[str, Any]:
    return {
        "documents": windows.documents,
        "windows": len(windows.rows),
        "tokens": result.tokens,
        "bytes": result.text_bytes,
        "nats_per_token": result.nats_per_token,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "mean_active_experts": result.experts_per_token,
    }


def _joined(windows: Mapping[str, _Windows]) -> _Windows:
    parts = windows.values()
    return _Windows(sum(each.documents for each in parts), tuple(r for e in parts for r in e.rows))


def _print(windows: Mapping[str, _Windows], results: Mapping[str, Evaluation]) -> None:
    shown = _as_json(windows, results)
    table = Table(box=None)
    table.add_column("file")
    for title in ("documents", "tokens", "nats/token", "perplexity", "bits/byte", "experts"):
        table.add_column(title, justify="right")
    for name, each in [*((f["file"], f) for f in shown["files"]), ("total", shown["total"])]:
        table.add_row(
            name,
            f"{each['documents']:,}",
            f"{each['tokens']:,}",
            f"{each['nats_per_token']:.4f}",
            f"{each['perplexity']:,.2f}",
            f"{each['bits_per_byte']:.4f}",
            f"{each['mean_active_experts']:.2f}",
        )
    console = Console()
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(table)
