"""`arion model export` and `arion model verify`: artefacts that ship, made and checked."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.errors import user_errors
from arion.export_words import plan_lines, print_passport, print_plans, verdict_facts
from arion.options import Json
from arion.progress import make_progress
from arion.variant_dense import USUAL, Dense
from arion.variant_export import export
from arion.variant_order import ExportOrder, Prepared, prepare
from arion.variant_selection import CRITERIA, Choice
from arion.variant_verify import verify_variant
from models.variants.distil import Distilling
from models.variants.extras import VariantError
from models.variants.names import CONTAINERS
from models.variants.passport import Passport
from models.variants.plan import BITS, TIERS, Target, Wanted


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
        wanted = _wanted(tier, container, bits, context, target)
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
        prepared, passport = _carry_out(order, dry_run=dry_run)
    if passport is None:
        print_plans(prepared, as_json)
    else:
        print_passport(passport, out, as_json)


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
        typer.echo(json.dumps(verdict_facts(verdict), indent=2, ensure_ascii=False))
        return
    typer.echo(f"{path}: {len(verdict.passport.files)} files are as {verdict.said_by} says.")
    if verdict.signer is not None and signer is None:
        typer.echo(f"Compare {verdict.signer} with the signer, or give it as --signer.")


def _wanted(
    tier: str, container: str | None, bits: int | None, context: int | None, target: Target
) -> Wanted:
    return Wanted(
        tier=_one_of(tier, TIERS, "--tier"),
        container=None if container is None else _one_of(container, CONTAINERS, "--format"),
        bits=None if bits is None else _one_of(bits, BITS, "--bits"),
        context=context,
        target=target,
    )


def _carry_out(order: ExportOrder, *, dry_run: bool) -> tuple[Prepared, Passport | None]:
    """Plan, and unless it is for show alone, make and publish."""
    with closing(make_progress()) as progress:
        prepared = prepare(order, progress)
        if dry_run:
            return prepared, None
        for line in plan_lines(prepared):
            progress.note(line)
        return prepared, export(order, prepared, progress)


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
