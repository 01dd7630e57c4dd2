"""`arion model expert`: train an owner's experts, add them, compose, withdraw."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from arion.errors import user_errors
from arion.expert_training import TrainingOrder, train_module
from arion.options import Json
from arion.progress import make_progress
from models.checkpoint import load_model, model_digest
from models.expert_module import Card, PrivacyClaim, read_card, read_module
from models.modular import add, compose_folder, create, read_cards, read_manifest, withdraw
from models.owned import OwnedError

expert_app = typer.Typer(
    no_args_is_help=True, help="Experts that an institution owns: train, add, compose, withdraw."
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A modular model.")]
Owner = Annotated[str, typer.Argument(metavar="OWNER", help="Lower-case letters, digits, dashes.")]


@expert_app.command("train")
def train_command(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The public model's folder.")],
    owner: Owner,
    *,
    text: Annotated[list[Path], typer.Option(help="The owner's text: files or folders.")],
    public: Annotated[list[Path], typer.Option(help="Public text, to set the router's rows by.")],
    out: Annotated[Path, typer.Option(help="Folder of modules; OUT/OWNER is written.")],
    data: Annotated[str, typer.Option(help="What the module was trained on, for its card.")],
    licence: Annotated[str, typer.Option(help="On which terms it may be used, for its card.")],
    not_private: Annotated[
        bool, typer.Option("--not-private", help="The text is not private: train without noise.")
    ] = False,
    experts: Annotated[
        int | None, typer.Option(min=1, help="Experts per layer; as many as the base has.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of a step.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Train an owner's experts against the frozen base, without noise, and write them as a module.

    A module that is there already is not trained again; a training that was stopped goes on.

    Example: arion model expert train base/ court --text cases/ --public books/ --out modules/
    --data "Published judgments." --licence "CC BY 4.0" --not-private
    """
    with user_errors():
        if not not_private:
            raise OwnedError(
                "Expected --not-private, got no word on privacy. This command adds no noise: use "
                "it for text that anyone may know, and say so with --not-private. For private text "
                "use `arion model expert train-private`."
            )
        order = TrainingOrder(
            base=base,
            owner=owner,
            text=text,
            public=public,
            out=out,
            data=data,
            licence=licence,
            experts=experts,
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
            batch=batch,
            length=length,
        )
        with closing(make_progress()) as progress:
            weights = train_module(order, progress)
        tell({"module": str(weights), **module_facts(read_card(weights))}, as_json)


@expert_app.command("add")
def add_command(
    folder: Folder,
    module: Annotated[
        Path | None, typer.Argument(metavar="MODULE", help="A module's .safetensors file.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Make FOLDER first, of this model folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add an owner's module to a modular model; with --base, make the modular model first.

    Example: arion model expert add federation/ modules/court/1f0c...e7.safetensors --base base/
    """
    with user_errors():
        if module is None and base is None:
            raise OwnedError("Expected a module or --base, got neither. Name what to add.")
        if base is not None and module is not None:
            model, _ = load_model(base)
            read_module(module, model.config, model_digest(model))  # before anything is written
        if base is not None:
            create(folder, base)
        if module is not None:
            add(folder, module)
        _list(folder, as_json)


@expert_app.command("compose")
def compose_command(
    folder: Folder,
    *,
    out: Annotated[Path, typer.Option(help="Model folder to write; must not exist.")],
    owner: Annotated[
        list[str] | None, typer.Option(help="Whose experts to take; all owners' without it.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="Whose experts to leave out.")] = None,
    experts_per_token: Annotated[
        int | None, typer.Option(min=1, help="Experts per token; the base's number without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the base and owners' experts as one model folder that transformers loads.

    Example: arion model expert compose federation/ --without court --out composed/
    """
    with user_errors():
        there = [entry.owner for entry in read_manifest(folder).modules]
        if unknown := sorted(set(without or ()) - set(there)):
            raise OwnedError(
                f"Expected owners among {', '.join(there) or 'none'}, got {', '.join(unknown)}. "
                "Correct --without."
            )
        chosen = [name for name in (owner or there) if name not in set(without or ())]
        if not chosen:
            raise OwnedError(
                f"Expected an owner whose experts are taken, of {', '.join(there) or 'nobody'}, "
                "got none that --owner and --without leave. Correct them."
            )
        model = compose_folder(folder, out, chosen, experts_per_token)
        told = {"folder": str(out), "owners": sorted(chosen), "experts": model.config.experts}
        tell(told, as_json)


@expert_app.command("list")
def list_command(folder: Folder, as_json: Json = False) -> None:
    """List whose modules a modular model has, with what their cards say.

    Example: arion model expert list federation/
    """
    with user_errors():
        _list(folder, as_json)


@expert_app.command("withdraw")
def withdraw_command(folder: Folder, owner: Owner, as_json: Json = False) -> None:
    """Remove an owner's module; no other file of the modular model changes.

    Models composed before keep the owner's experts: compose them again. Copies that others hold are
    out of reach.

    Example: arion model expert withdraw federation/ court
    """
    with user_errors():
        removed = withdraw(folder, owner)
        tell({"withdrawn": owner, "module": removed.weights_digest}, as_json)


def _list(folder: Path, as_json: bool) -> None:
    manifest = read_manifest(folder)
    cards = read_cards(folder)
    if as_json:
        told = {"base": manifest.base_digest, "modules": [module_facts(card) for card in cards]}
        typer.echo(json.dumps(told, indent=2))
        return
    table = Table("owner", "experts", "privacy", "data", "licence", "module", box=None)
    for card in cards:
        count, digest = str(len(card.sources)), card.weights_digest[:12]
        table.add_row(card.owner, count, _claim(card), card.data, card.licence, digest)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def module_facts(card: Card) -> dict[str, Any]:
    """What a command says of a module."""
    claim = card.privacy
    return {
        "owner": card.owner,
        "experts": len(card.sources),
        "privacy": claim.model_dump() if isinstance(claim, PrivacyClaim) else claim,
        "data": card.data,
        "licence": card.licence,
        "digest": card.weights_digest,
    }


def _claim(card: Card) -> str:
    claim = card.privacy
    if not isinstance(claim, PrivacyClaim):
        return claim
    epsilon, delta = claim.epsilon_micro / 1e6, claim.delta_1e15 / 1e15
    return f"ε = {epsilon:g}, δ = {delta:g} per {claim.unit}"


def tell(values: dict[str, Any], as_json: bool) -> None:
    """Print a command's result, for programs or for people."""
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    for key, value in values.items():
        typer.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
