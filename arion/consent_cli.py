"""`arion privacy consent`: consents in plain sentences. Works offline."""

import json
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from arion.options import Json
from privacy.consent import load_consent
from privacy.consent_words import explain

consent_app = typer.Typer(no_args_is_help=True, help="What an institution agreed to.")


@consent_app.command("explain")
def explain_command(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A consent.toml.")],
    as_json: Json = False,
) -> None:
    """Say in plain sentences what a consent allows, and print its digest.

    Example: arion privacy consent explain hospital-a/consent.toml
    """
    with user_errors():
        consent = load_consent(path)
    sentences = explain(consent)
    if consent.expires < date.today():
        sentences += [f"WARNING: it has expired, on {consent.expires}: the node refuses every run."]
    digest = consent.digest()
    if as_json:
        typer.echo(json.dumps({"sentences": sentences, "digest": digest}, indent=2))
        return
    for sentence in sentences:
        typer.echo(sentence)
    typer.echo(f"Digest, as the ledger records it: {digest}")
