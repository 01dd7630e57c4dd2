"""`arion model expert train-private`: experts trained and released under a node's own budget."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from arion.expert_cli import module_facts, tell
from arion.institutions import read_public
from arion.options import Json
from arion.progress import Progress, make_progress
from client.experts_order import parse_order, train_experts
from client.experts_training import Watch
from models.expert_module import read_card


def train_private_command(
    home: Annotated[
        Path, typer.Argument(metavar="HOME", help="The node's home: node.toml, consent.toml, keys.")
    ],
    *,
    public: Annotated[list[Path], typer.Option(help="Public text, to set the router's rows by.")],
    out: Annotated[Path, typer.Option(help="Folder of modules; OUT/OWNER is written.")],
    epsilon: Annotated[float, typer.Option(help="Bound on what the module tells of one unit.")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps, fixed beforehand.")],
    rate: Annotated[
        float,
        typer.Option(help="Chance of each unit in each step. Not to be computed from the data."),
    ],
    batch: Annotated[
        float,
        typer.Option(help="Divisor of every step's sum. Not to be computed from the data."),
    ],
    data: Annotated[str, typer.Option(help="What the module was trained on, for its card.")],
    licence: Annotated[str, typer.Option(help="On which terms it may be used, for its card.")],
    delta: Annotated[
        float | None, typer.Option(help="Default: one run's share of the consent's delta.")
    ] = None,
    experts: Annotated[int, typer.Option(min=1, help="Experts per layer.")] = 1,
    train_rows: Annotated[
        bool, typer.Option("--train-rows", help="Train router rows too, not the experts alone.")
    ] = False,
    clip: Annotated[float, typer.Option(help="Norm that each unit's gradient is cut to.")] = 1.0,
    learning_rate: Annotated[float, typer.Option()] = 2e-3,
    average_decay: Annotated[
        float, typer.Option(help="Of a moving average of the weights, which is released; 0: none.")
    ] = 0.0,
    bias_correction: Annotated[
        bool, typer.Option(help="Take the noise's known variance off Adam's second moment.")
    ] = True,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 128,
    sequences_per_unit: Annotated[int, typer.Option(min=1, help="The rest is not used.")] = 1,
    run: Annotated[
        str, typer.Option(help="Name in the ledger; each further module needs a new one.")
    ] = "owned-experts",
    as_json: Json = False,
) -> None:
    """Train experts on a node's private text with noise of its own, and release them as a module.

    Text, base model and owner are those of the node; consent.toml decides whether experts may leave
    and what they may cost, and the node's ledger is charged before the training. The same command
    given again goes on where it was cut short, or hands the same module out again.

    Example: arion model expert train-private hospital-a/ --public books/ --out modules/ --epsilon 4
    --steps 200 --rate 0.01 --batch 50 --data "Ward notes." --licence "Members only."
    """
    with user_errors():
        order = parse_order(
            epsilon=epsilon,
            delta=delta,
            steps=steps,
            sampling_probability=rate,
            expected_batch=batch,
            clipping_norm=clip,
            sources=tuple(range(experts)),
            train_rows=train_rows,
            sequence_length=sequence_length,
            sequences_per_unit=sequences_per_unit,
            optimiser={
                "learning_rate": learning_rate,
                "average_decay": average_decay,
                "bias_correction": bias_correction,
            },
            run=run,
            data=data,
            licence=licence,
        )
        documents = read_public(public)
        with closing(make_progress()) as progress:
            sealed = train_experts(home, order, documents, watch=_watch(progress))
        weights = sealed.publish(out)
        tell({"module": str(weights), **module_facts(read_card(weights))}, as_json)


def _watch(progress: Progress) -> Watch:
    """Show each part of the work as a stage of its own."""
    shown: list[str] = []

    def watch(what: str, done: int, total: int) -> None:
        if what not in shown:
            shown.append(what)
            progress.stage(what, total)
        progress.step(done, "")

    return watch
