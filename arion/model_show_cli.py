"""`arion model list` and `arion model show`: the family's presets, and what a model is made of."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from arion.errors import user_errors
from arion.model_facts import ModelFacts, facts_of, preset_facts
from arion.options import Json
from models.config import preset_names
from models.counts import weight_bytes

_GB_FROM = 1e8  # bytes from which they are said in GB
_PIPED_WIDTH = 120


def list_command(as_json: Json = False) -> None:
    """List the presets of the family with their exact sizes.

    Example: arion model list
    """
    facts = [preset_facts(name) for name in preset_names()]
    if as_json:
        typer.echo(json.dumps([each.as_json() for each in facts], indent=2))
        return
    table = Table(box=None)
    table.add_column("name")
    for title in ("parameters", "active", "experts", "layers", "hidden", "vocabulary", "positions"):
        table.add_column(title, justify="right")
    for each in facts:
        config = each.config
        table.add_row(
            each.name,
            f"{each.counts.total:,}",
            f"{each.counts.active:,}",
            f"{config.experts_per_token} of {config.experts}",
            *map(str, (config.layers, config.hidden_size, config.vocab_size, config.max_positions)),
        )
    _console().print(table)


def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A preset or a model folder.")],
    as_json: Json = False,
) -> None:
    """Show a model's sizes, memory, experts and their owners; no weight is loaded.

    Of a folder, the headers of its files are checked against its config.json.

    Example: arion model show arion-1.2-2b
    """
    with user_errors():
        facts = facts_of(name)
    if as_json:
        typer.echo(json.dumps(facts.as_json(), indent=2))
    else:
        _print_facts(facts)


def _print_facts(facts: ModelFacts) -> None:
    config, counts = facts.config, facts.counts
    owners = ", ".join(f"{owner}: {count}" for owner, count in facts.owners.items())
    memory = weight_bytes(counts.total).items()
    table = Table(box=None, show_header=False)
    for key, value in (
        ("model", facts.name),
        ("parameters", f"{counts.total:,}"),
        ("active per token", f"{counts.active:,} ({counts.active / counts.total:.0%})"),
        ("of both, embeddings", f"{counts.embedding:,}{' (tied)' * config.tie_embeddings}"),
        ("memory of weights", ", ".join(f"{kind} {_size(size)}" for kind, size in memory)),
        ("experts per layer", f"{config.experts} ({owners}), {config.experts_per_token} per token"),
        ("layers x hidden", f"{config.layers} x {config.hidden_size}"),
        ("heads", f"{config.heads} of width {config.head_dim}, {config.kv_heads} key/value"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("positions", f"{config.max_positions:,}"),
        ("on disk", _on_disk(facts)),
    ):
        table.add_row(key, value)
    _console().print(table)


def _on_disk(facts: ModelFacts) -> str:
    stored = facts.stored
    if stored is None:
        return "nothing: a preset is a shape"
    types = ", ".join(stored.types)
    return f"{stored.family}, {types}, {_size(stored.file_bytes)} in {stored.files} file(s)"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= _GB_FROM else f"{count / 1e6:.2f} MB"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_WIDTH)
