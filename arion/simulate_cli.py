"""`arion simulate`: options, their meaning, and what is printed."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from arion.compare import Comparison
from arion.errors import user_errors
from arion.progress import make_progress
from arion.run_file import RunFile, RunFileError, load_run_file
from arion.simulate import REPORT_FILE, RUN_FILE, Simulation

_INTERRUPTED = 130
_USUAL_SEEDS = 3


def simulate_command(  # noqa: PLR0917  (its options are its interface)
    run_file: Annotated[
        Path | None, typer.Argument(metavar="[RUN.toml]", help="What to do; all keys optional.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of institutions: each subfolder or data file is one.",
            show_default="an invented federation",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="data.toml for all institutions, instead of their own.")
    ] = None,
    public: Annotated[
        list[Path] | None, typer.Option(help="Public text for tokenizer and warm-up; repeatable.")
    ] = None,
    unseen: Annotated[
        str | None, typer.Option(help="Institutions only evaluated on: NAME,NAME.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Preset (nano, tiny) or model folder to start from.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Number of nodes.", show_default="one per institution")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Optimiser steps.", show_default="20")] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Budget of the run, per unit; 0 runs without privacy.", show_default="8"),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Its delta.", show_default="1e-5")] = None,
    drop: Annotated[
        float | None,
        typer.Option(help="Chance that a node drops out of a round.", show_default="0"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all that is drawn.", show_default="0")
    ] = None,
    secure_noise: Annotated[
        bool,
        typer.Option("--secure-noise", help="Draw noise from the system: private, not repeatable."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/simulation"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, as it was set up.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train all arms on the same data and budget.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of a comparison.", min=1, show_default="3")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False,
) -> None:
    """Simulate a federation in one process: text in, model, ledger and report out.

    Examples:
      arion simulate

      arion simulate --data hospitals/ --public books/ --epsilon 3 --rounds 40 --out runs/h3

      arion simulate --resume --out runs/h3

      arion simulate --compare --data hospitals/ --public books/ --unseen cdc,nhlbi

    """
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    options: dict[str, dict[str, Any]] = {
        "data": {"path": data, "config": config, "public": public, "unseen": _names(unseen)},
        "model": {"base": model},
        "training": {"rounds": rounds},
        "privacy": {"delta": delta, **_epsilon(epsilon)},
        "federation": {"nodes": nodes, "drop": drop},
        "compare": {"seeds": seeds},
        "": {"seed": seed},
    }
    with user_errors():
        given = {s: {k: v for k, v in o.items() if v is not None} for s, o in options.items()}
        wants = Wants(resume=resume, compare=compare, secure_noise=secure_noise)
        run = _open_run(run_file, given, out, wants)
        report = _carry_out(run, out)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        _print_result(report, out)


@dataclass(frozen=True)
class Wants:
    """The options that are switches."""

    resume: bool
    compare: bool
    secure_noise: bool

    def applied_to(self, run: RunFile) -> RunFile:
        """Put the switches into the run file.

        Raises:
            RunFileError: switches that do not go together.

        """
        if self.compare and not run.compare.seeds:
            compare = run.compare.model_copy(update={"seeds": _USUAL_SEEDS})
            run = run.model_copy(update={"compare": compare})
        if run.compare.seeds and self.secure_noise:
            raise RunFileError(
                "Expected a comparison with seeds, got --secure-noise: arms are compared over "
                "seeds. Leave it out, or simulate a single run."
            )
        return run.model_copy(update={"seed": None}) if self.secure_noise else run


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


def _epsilon(value: float | None) -> dict[str, Any]:
    if value is None:
        return {}
    return {"epsilon": value} if value else {"enabled": False}


def _open_run(
    path: Path | None,
    given: dict[str, dict[str, Any]],
    out: Path,
    wants: Wants,
) -> RunFile:
    """Read what to do: from the run's own folder when it is resumed, and nothing else then."""
    saved = out / RUN_FILE
    if wants.resume:
        if not saved.is_file():
            raise RunFileError(
                f"Expected a run to resume in {out}, got no {RUN_FILE} there. Check --out, or "
                "start the run without --resume."
            )
        if path is not None or any(given.values()) or wants.compare or wants.secure_noise:
            raise RunFileError(
                "Expected --resume with --out alone, got other options: a run goes on as it was "
                "set up. Leave them out, or start a new run."
            )
        return RunFile.model_validate_json(saved.read_text())
    # A folder with nothing but RUN_FILE is that of a run which its data kept from beginning.
    if out.exists() and {entry.name for entry in out.iterdir()} - {RUN_FILE}:
        raise RunFileError(
            f"Expected a new folder for the run, got {out}, which is not empty. Add --resume to go "
            "on with it, or choose another --out."
        )
    run = wants.applied_to(load_run_file(path, given))
    out.mkdir(parents=True, exist_ok=True)
    saved.write_text(_absolute(run).model_dump_json(indent=1) + "\n")
    return _absolute(run)


def _absolute(run: RunFile) -> RunFile:
    """Make paths independent of the folder that the command was given in."""
    data = run.data
    places = {
        "path": data.path and data.path.resolve(),
        "config": data.config and data.config.resolve(),
        "public": tuple(place.resolve() for place in data.public),
    }
    return run.model_copy(update={"data": data.model_copy(update=places)})


def _carry_out(run: RunFile, out: Path) -> dict[str, Any]:
    progress = make_progress()
    try:
        if run.compare.seeds:
            return Comparison(run, out, progress).run()
        return Simulation(run, out, progress).run()
    except KeyboardInterrupt as interrupt:
        progress.note(f"Stopped. Go on with: arion simulate --resume --out {out}")
        raise typer.Exit(_INTERRUPTED) from interrupt
    finally:
        progress.close()


def _print_result(report: dict[str, Any], out: Path) -> None:
    for arm, found in report["arms"].items():
        losses = found["heldout_loss"]
        unseen = f"   unseen {losses['unseen']:.3f}" if "unseen" in losses else ""
        typer.echo(f"{arm:>13}  held-out loss {losses['mean']:.3f}{unseen}")
    if report.get("noise") == "seeded, not private":
        typer.echo("The noise was seeded: this run shows what epsilon costs, and protects nobody.")
    typer.echo(f"Report: {out / 'report.html'} and {out / REPORT_FILE}")
    if (out / "pins.json").exists():
        typer.echo(f"Check the ledgers with: arion privacy ledger verify {out}")
