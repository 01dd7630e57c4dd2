"""`arion model export` and `arion model verify`: artefacts that ship, made and checked."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from arion.errors import user_errors
from arion.progress import make_progress
from arion.variant_dense import USUAL, Dense, Teaching
from arion.variant_export import export
from arion.variant_order import ExportOrder, Prepared, prepare
from arion.variant_selection import CRITERIA, Choice
from arion.variant_verify import Verdict, verify_variant
from models.variants.distil import Distilling
from models.variants.extras import VariantError
from models.variants.names import CONTAINERS
from models.variants.passport import Missing, Passport
from models.variants.plan import BITS, TIERS, Target, Wanted

_PIPED_WIDTH = 120

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def export_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model folder, composed or modular too.")
    ],
    *,
    tier: Annotated[str, typer.Option(metavar="|".join(TIERS), help="What it is for.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where it goes; must not exist.")],
    container: Annotated[
        str | None,
        typer.Option("--format", metavar="|".join(CONTAINERS), show_default="the tier's own"),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(metavar="|".join(map(str, BITS)), show_default="the tier's own"),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens to hold.", show_default="the model's, at most 2048"),
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Of all its files.")] = None,
    max_memory: Annotated[int | None, typer.Option(min=1, help="Bytes, while it runs.")] = None,
    min_tokens_per_s: Annotated[float | None, typer.Option(help="Of decoding one text.")] = None,
    max_loss_rise: Annotated[
        float | None, typer.Option(help="Nats per token over the parent's loss, with --heldout.")
    ] = None,
    domain: Annotated[
        Path | None,
        typer.Option(help="Folder of public text with a public.toml, to choose experts by."),
    ] = None,
    experts: Annotated[
        int | None, typer.Option(min=1, help="Experts per layer.", show_default="as many as fit")
    ] = None,
    choose: Annotated[
        str, typer.Option(metavar="|".join(CRITERIA), help="What of the text decides.")
    ] = "reap",
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Average experts that go into those that stay; often worse."),
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="Distil a dense model from the experts, on --public.")
    ] = False,
    public: Annotated[
        Path | None,
        typer.Option(help="Folder of public text with a public.toml, to distil on."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(min=1, help="Of a dense layer.", show_default="experts that a token uses"),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Layers of a dense model.", show_default="all")
    ] = None,
    distil_steps: Annotated[
        int | None, typer.Option(min=1, help="To distil.", show_default=str(USUAL.steps))
    ] = None,
    distil_batch: Annotated[
        int | None, typer.Option(min=1, help="Windows of a step.", show_default=str(USUAL.batch))
    ] = None,
    distil_length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of one.", show_default=str(USUAL.sequence_length)),
    ] = None,
    distil_rate: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Highest rate.", show_default=str(USUAL.learning_rate)),
    ] = None,
    owner: Annotated[
        list[str] | None,
        typer.Option(help="Whose experts to take beside the base's own; repeatable. All without."),
    ] = None,
    heldout: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of public text with a public.toml, to compare on; repeatable."),
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Folder with the ledgers of the model's training.")
    ] = None,
    pins: Annotated[
        Path | None, typer.Option(help="Keys of those ledgers. Default: pins.json beside them.")
    ] = None,
    canaries: Annotated[
        Path | None,
        typer.Option(help="secrets.json of arion privacy plant --coins: attack the artefact."),
    ] = None,
    audit_delta: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="To bound epsilon at.", show_default="the ledgers'"),
    ] = None,
    audit_tries: Annotated[
        int, typer.Option(min=1, max=1000, help="Candidates to hold each canary against.")
    ] = 8,
    key: Annotated[
        Path | None, typer.Option(help="Identity key that signs; unsigned without it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make an artefact for a tier: planned to fit, run in its runtime, published if it passes.

    Example: arion model export runs/h3/model --tier mobile --max-bytes 2000000000 --out phone/

    Example: arion model export base/ --tier edge --dense --public texts/ --depth 12 --out watch/
    """
    with user_errors():
        target = Target(max_bytes, max_memory, min_tokens_per_s, max_loss_rise)
        wanted = Wanted(
            tier=_one_of(tier, TIERS, "--tier"),
            container=None if container is None else _one_of(container, CONTAINERS, "--format"),
            bits=None if bits is None else _one_of(bits, BITS, "--bits"),
            context=context,
            target=target,
        )
        owners = None if owner is None else tuple(owner)
        choice = Choice(owners, experts, _one_of(choose, CRITERIA, "--choose"), merge)
        settings = {
            "steps": distil_steps,
            "batch": distil_batch,
            "sequence_length": distil_length,
            "learning_rate": distil_rate,
        }
        order = ExportOrder(
            model=model,
            out=out,
            wanted=wanted,
            heldout=tuple(heldout or ()),
            domain=domain,
            choice=choice,
            dense=_dense(width, depth, settings, asked=dense),
            public=public,
            ledger=ledger,
            pins=pins,
            canaries=canaries,
            audit_delta=audit_delta,
            audit_tries=audit_tries,
            key=key,
        )
        with closing(make_progress()) as progress:
            prepared = prepare(order, progress)
            if not dry_run:
                for line in _plan_lines(prepared):
                    progress.note(line)
            passport = None if dry_run else export(order, prepared, progress)
    if passport is None:
        _print_plans(prepared, as_json)
    else:
        _print_passport(passport, out, as_json)


def verify_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of an artefact.")],
    *,
    signer: Annotated[
        str | None,
        typer.Option(metavar="FINGERPRINT", help="Who must have signed, obtained out of band."),
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Accept an artefact that nobody signed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check an artefact offline: every byte, its passport, its signature. Exit 2 if anything fails.

    Example: arion model verify phone/ --signer arion:0f1e2d3c-...
    """
    with user_errors():
        verdict = verify_variant(path, signer, unsigned=unsigned)
    if as_json:
        typer.echo(json.dumps(_verdict_facts(verdict), indent=2, ensure_ascii=False))
        return
    typer.echo(f"{path}: {len(verdict.passport.files)} files are as {verdict.said_by} says.")
    if verdict.signer is not None and signer is None:
        typer.echo(f"Compare {verdict.signer} with the signer, or give it as --signer.")


def _one_of(value: Any, known: tuple[Any, ...], option: str) -> Any:
    if value not in known:
        raise VariantError(
            f"Expected {option} out of {', '.join(map(str, known))}, got {value}. Choose one."
        )
    return value


def _dense(
    width: int | None, depth: int | None, settings: dict[str, Any], *, asked: bool
) -> Dense | None:
    """The student that was asked for; what was not said is as usual."""
    given = {name: value for name, value in settings.items() if value is not None}
    if asked:
        return Dense(width, depth, Distilling(**given))
    if width is not None or depth is not None or given:
        raise VariantError(
            "Expected --dense with --width, --depth or an option of the distillation, got none. "
            "Layers are left out and experts joined with a distillation only."
        )
    return None


def _plan_lines(prepared: Prepared) -> list[str]:
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


def _teaching_line(teaching: Teaching) -> str:
    shape = teaching.student.config
    return (
        f"Distillation: {teaching.settings.steps:,} steps, {teaching.tokens:,} tokens "
        f"({teaching.passes:.2g} passes over {teaching.text.name!r}), about {teaching.flops:.2g} "
        f"FLOPs, into {shape.layers} of {teaching.teacher.config.layers} layers of width "
        f"{shape.expert_hidden_size}."
    )


def _print_plans(prepared: Prepared, as_json: bool) -> None:
    if as_json:
        plans = [
            {**vars(plan), "memory_bytes": plan.memory_bytes} for plan in prepared.selected.plans
        ]
        found: dict[str, Any] = {"plans": plans}
        if prepared.teaching is not None:
            found["distillation"] = _teaching_facts(prepared.teaching)
        typer.echo(json.dumps(found, indent=2))
        return
    for line in _plan_lines(prepared):
        typer.echo(line)


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


def _print_passport(passport: Passport, out: Path, as_json: bool) -> None:
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


def _verdict_facts(verdict: Verdict) -> dict[str, Any]:
    passport = verdict.passport.model_dump(mode="json")
    return {"ok": True, "signer": verdict.signer, "passport": passport}
