"""`arion model`: what a model is made of, brought in, grown, run and measured."""

import typer

model_app = typer.Typer(no_args_is_help=True, help="Look at models, bring them in, run them.")
