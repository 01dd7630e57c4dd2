"""`arion model pretrain`: a preset learns from public text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from arion.errors import user_errors
from arion.pretraining import Pretraining, pretrain
from arion.progress import Progress, Silent, make_progress
from models.parallel import StoppedElsewhereError, World, processes
from models.training_settings import WarmUp

_MANY_STEPS = 2**31


def pretrain_command(
    *,
    preset: Annotated[str, typer.Option(help="A preset of `arion model list`.")],
    public: Annotated[list[Path], typer.Option(help="File or folder of public text; repeatable.")],
    out: Annotated[Path, typer.Option(help="The model folder that is to be made.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Most steps; all of --passes.")] = None,
    passes: Annotated[int, typer.Option(min=1, help="How often the text is read.")] = 1,
    batch: Annotated[
        int, typer.Option(min=1, help="Sequences of a step, over all processes.")
    ] = 16,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=1e-9, help="Highest rate of AdamW.")] = 4e-3,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the passes.")] = "fp32",
    random_activation: Annotated[
        bool, typer.Option("--random-activation", help="Train for few and many experts per token.")
    ] = False,
    checkpoint_blocks: Annotated[
        bool,
        typer.Option(
            "--checkpoint-blocks", help="Less memory: blocks are computed again for backward."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of first weights and batches.")] = 0,
    snapshot_every: Annotated[int, typer.Option(min=1, help="Steps between snapshots.")] = 500,
) -> None:
    """Train a preset on public text, by one process or by those of torchrun.

    A stopped run goes on from its last snapshot: give the same command again.

    Example: arion model pretrain --preset nano --public texts/ --out base/

    Example: torchrun --nproc-per-node 2 -m arion model pretrain ... (the same options)
    """
    with user_errors():
        settings = WarmUp(
            steps=steps or _MANY_STEPS,
            batch=batch,
            sequence_length=sequence_length,
            learning_rate=learning_rate,
            precision=precision,
            random_activation=random_activation,
            checkpoint_blocks=checkpoint_blocks,
        )
        order = Pretraining(preset, tuple(public), settings, seed, passes)
        try:
            with processes() as world:
                _run(order, out, snapshot_every, world)
        except StoppedElsewhereError as error:  # that process has told the user
            raise typer.Exit(2) from error


def _run(order: Pretraining, out: Path, snapshot_every: int, world: World) -> None:
    shown: Progress = make_progress() if world.is_first else Silent()

    def step(done: int, steps: int, loss: float) -> None:
        if not stages:
            stages.append("training")
            shown.stage("training", steps)
        shown.step(done, f"{loss:.3f} nats per token")

    stages: list[str] = []
    try:
        loss = pretrain(order, out, step, snapshot_every=snapshot_every, world=world)
    finally:
        shown.close()
    if world.is_first:
        typer.echo(f"{out}: {order.preset}, {loss:.3f} nats per token over the last steps")
