"""`arion privacy audit` and `plant`: what is claimed, beside what attacks show."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.audit_canaries import share_of_confidence
from arion.audit_parts import Wanted
from arion.audit_report import audit_json, tpr_words, write_page
from arion.audit_secrets import plant
from arion.audit_target import audit_target, layout_of
from arion.errors import user_errors
from arion.options import Json
from arion.plan_cli import Members
from arion.progress import make_progress
from client.entropy import Entropy
from privacy.audit.one_run import AuditError
from privacy.figures import at_least, at_most
from privacy.ledger.files import replace_durably

REFUTED = 3

Seed = Annotated[int | None, typer.Option(help="Repeat an audit; by default all is drawn anew.")]


def audit_command(  # noqa: PLR0917  (its options are its interface)
    target: Annotated[
        Path, typer.Argument(metavar="RUN.toml|RUN|MODEL", help="A run file, a run or a model.")
    ],
    units_per_node: Annotated[
        int | None, typer.Option(min=1, help="RUN.toml: units that each member trains on.")
    ] = None,
    nodes: Members = None,
    canaries: Annotated[
        int, typer.Option(help="Gradient canaries, on the releases.", min=10, max=100_000)
    ] = 10_000,
    text_canaries: Annotated[
        int, typer.Option(help="Text canaries, through training; 0: none.", min=0, max=100_000)
    ] = 1_000,
    members: Annotated[
        Path | None, typer.Option(help="MODEL: records that it was trained on.")
    ] = None,
    nonmembers: Annotated[Path | None, typer.Option(help="MODEL: records that it was not.")] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="A model that saw no member, for RMIA; a run's base is one. Repeatable."),
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option(help="Planted secrets; default: the invented federation's own.")
    ] = None,
    tries: Annotated[
        int, typer.Option(help="Candidates to hold each secret against.", min=10, max=1_000_000)
    ] = 1_000,
    confidence: Annotated[float, typer.Option(help="Of all bounds at once.")] = 0.95,
    seed: Seed = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Attack a run or a model, and set what is shown beside what is claimed.

    RUN.toml: canaries pass the run's releases and its training before anyone runs it. RUN, a folder
    of `arion simulate`: that, and membership inference and planted secrets on its model. MODEL, a
    model folder: the latter two, on given records. Exit code 3: REFUTED, an attack shows more than
    is claimed, and nothing of it may be released.

    Example: arion privacy audit run.toml --nodes 7 --units-per-node 1800 --html audit.html
    """
    wanted = Wanted(
        canaries=canaries,
        text_canaries=text_canaries,
        tries=tries,
        confidence=confidence,
        seed=seed,
        references=tuple(reference or ()),
        members=members,
        others=nonmembers,
        secrets=secrets,
        nodes=nodes,
        units_per_node=units_per_node,
    )
    with user_errors():
        share_of_confidence(confidence, 1)
        _check_folders(out, html)
        progress = make_progress()
        try:
            audit = audit_target(target, wanted, progress)
        finally:
            progress.close()
        report = audit_json(audit)
        if out is not None:
            replace_durably(out, json.dumps(report, indent=1).encode() + b"\n")
        if html is not None:
            write_page(report, html)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        _print(report)
    raise typer.Exit(REFUTED if audit.is_refuted else 0)


def plant_command(
    data: Annotated[Path, typer.Argument(metavar="SHARD", help="A shard, for its layout.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for canaries.jsonl and secrets.json.")],
    count: Annotated[int, typer.Option(help="Secrets.", min=1, max=1000)] = 10,
    repeats: Annotated[int, typer.Option(help="Records of each.", min=1, max=1000)] = 1,
    coins: Annotated[
        bool,
        typer.Option(
            "--coins", help="Leave each out by a coin, for arion model export --canaries."
        ),
    ] = False,
    seed: Seed = None,
) -> None:
    """Draw secrets to plant in training data, for `arion privacy audit` to look for afterwards.

    Writes records in the shard's layout, each secret a privacy unit of its own. Put canaries.jsonl
    into the shard before training, and keep secrets.json out of it. Nothing of the shard changes.

    Example: arion privacy plant data/hospital-a --out canaries/ --count 20 --repeats 4

    Example: arion privacy plant data/hospital-a --out canaries/ --count 1000 --coins
    """
    with user_errors():
        if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
            raise ValueError(
                f"Expected a folder outside of the shard {data}, got {out}: who trains on the list "
                "of secrets learns all of them. Choose another --out."
            )
        records, listing = plant(
            layout_of(data), out, count=count, repeats=repeats, entropy=Entropy(seed), coins=coins
        )
    typer.echo(f"{records}: put it into the shard. {listing}: keep it, outside the shard.")


def _check_folders(*files: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    for path in files:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise AuditError(f"Expected a file in a folder that is there, got {path}. Make it.")


def _print(report: Mapping[str, Any]) -> None:
    claim = report["claim"]
    if claim is not None:
        typer.echo(f"claimed epsilon  {at_most(claim['epsilon']):>8} at delta = {claim['delta']:g}")
    for each in report["canaries"]:
        typer.echo(
            f"audited, at least{at_least(each['epsilon_at_least']):>8} by {each['attack']}: "
            f"{each['correct']} of {each['guessed']} guesses about {each['canaries']} canaries "
            f"were right; all right would show {at_least(each['most_it_can_show'])}"
        )
    for institution in report["membership"]:
        _print_membership(institution)
    _print_secrets(report["secrets"])
    _print_verdict(report)


def _print_membership(found: Mapping[str, Any]) -> None:
    for attack in found["attacks"]:
        auc = attack["auc"]
        tprs = "; ".join(
            f"TPR at {at['fpr']:.1%} FPR {tpr_words(at)}" for at in attack["tpr_at_fpr"]
        )
        typer.echo(
            f"{found['name']}, {attack['attack']} attack on {found['members']} members and "
            f"{found['non_members']} others: AUC {auc['value']:.3f} ({auc['low']:.3f} to "
            f"{auc['high']:.3f}); {tprs}"
        )


def _print_secrets(found: list[Mapping[str, Any]]) -> None:
    for seen, words in ((True, "trained on"), (False, "not trained on, or in part"), (None, "")):
        bits = [each["bits"] for each in found if each["was_trained_on"] is seen]
        if bits:
            expected = found[0]["expected_when_unseen"]
            typer.echo(
                f"{len(bits)} planted secrets {words}: exposure {sum(bits) / len(bits):.2f} bits "
                f"on average, {max(bits):.2f} at most; {expected:.2f} on average if never seen"
            )


def _print_verdict(report: Mapping[str, Any]) -> None:
    if report["noise"] not in (None, "csprng"):
        typer.echo(f"The run's noise: {report['noise']}. The run itself protects nobody.")
    if report["refuted"]:
        typer.echo("REFUTED: an attack shows more than is claimed. Release nothing of it.")
    elif report["claim"] is None:
        typer.echo("Nothing is claimed: no epsilon holds as far as this audit was told.")
    elif report["claim"]["epsilon"] >= max(e["most_it_can_show"] for e in report["canaries"]):
        typer.echo("note: so large a claim cannot be refuted by so many canaries at this delta")
    else:
        typer.echo("not refuted, which does not prove the claim")
