"""What `arion model export` and `arion model verify` say of plans, artefacts and verdicts."""

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from arion.variant_dense import Teaching
from arion.variant_order import Prepared
from arion.variant_verify import Verdict
from models.variants.passport import Missing, Passport

_PIPED_WIDTH = 120


def plan_lines(prepared: Prepared) -> list[str]:
    """What will be made, in lines."""
    first, *others = prepared.selected.plans
    lines = [
        f"Plan: {first.name}, at most {first.file_bytes:,} bytes of files and "
        f"{first.memory_bytes:,} or more in memory with {first.context} tokens."
    ]
    if others:
        lines.append(f"Should it fail: {', then '.join(plan.name for plan in others)}.")
    if prepared.teaching is not None:
        lines.append(_teaching_line(prepared.teaching))
    return lines


def print_plans(prepared: Prepared, as_json: bool) -> None:
    """Print what would be made."""
    if as_json:
        plans = [
            {**vars(plan), "memory_bytes": plan.memory_bytes} for plan in prepared.selected.plans
        ]
        found: dict[str, Any] = {"plans": plans}
        if prepared.teaching is not None:
            found["distillation"] = _teaching_facts(prepared.teaching)
        typer.echo(json.dumps(found, indent=2))
        return
    for line in plan_lines(prepared):
        typer.echo(line)


def print_passport(passport: Passport, out: Path, as_json: bool) -> None:
    """Print what was made, and how it compares with its parent."""
    if as_json:
        typer.echo(passport.model_dump_json(indent=2))
        return
    typer.echo(
        f"{out}: {passport.container} {passport.number_format}, {passport.file_bytes:,} bytes"
    )
    ran = passport.verification
    if isinstance(ran, Missing):
        typer.echo(
            f"Not run: pip install 'arion-federated[{ran.missing_extra}]' brings its runtime."
        )
        return
    table = Table("beside the parent", box=None)
    for title in ("tokens", "loss", "parent's loss", "KL", "top-1"):
        table.add_column(title, justify="right")
    for row in ran.quality:
        figures = (f"{row.loss:.4f}", f"{row.model_loss:.4f}", f"{row.kl:.1e}", f"{row.top1:.1%}")
        table.add_row(row.text, f"{row.tokens:,}", *figures)
    console = Console()
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(table)
    memory = "not measurable" if ran.resident_bytes is None else f"{ran.resident_bytes:,} bytes"
    typer.echo(f"{ran.tokens_per_s:.1f} tokens/s with {ran.threads} thread(s); memory {memory}")


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """What was verified, for `--json`."""
    passport = verdict.passport.model_dump(mode="json")
    return {"ok": True, "signer": verdict.signer, "passport": passport}


def _teaching_line(teaching: Teaching) -> str:
    shape = teaching.student.config
    return (
        f"Distillation: {teaching.settings.steps:,} steps, {teaching.tokens:,} tokens "
        f"({teaching.passes:.2g} passes over {teaching.text.name!r}), about {teaching.flops:.2g} "
        f"FLOPs, into {shape.layers} of {teaching.teacher.config.layers} layers of width "
        f"{shape.expert_hidden_size}."
    )


def _teaching_facts(teaching: Teaching) -> dict[str, Any]:
    return {
        **teaching.settings.model_dump(),
        "tokens": teaching.tokens,
        "passes": teaching.passes,
        "flops": teaching.flops,
        "layers": teaching.layers,
        "joined": teaching.joined,
        "width": teaching.student.config.expert_hidden_size,
    }
