"""`arion privacy consent`: consents in plain sentences. Works offline."""

from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from privacy.consent import load_consent
from privacy.consent_words import explain

consent_app = typer.Typer(no_args_is_help=True, help="What an institution agreed to.")


@consent_app.command("explain")
def explain_command(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A consent.toml.")],
) -> None:
    """Say in plain sentences what a consent allows, and print its digest.

    Example: arion privacy consent explain hospital-a/consent.toml
    """
    with user_errors():
        consent = load_consent(path)
    for sentence in explain(consent):
        typer.echo(sentence)
    typer.echo(f"Digest, as the ledger records it: {consent.digest()}")
