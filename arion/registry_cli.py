"""`arion model registry`, `withdraw` and `receipt`: artefacts kept, revoked and accounted for."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from arion.errors import user_errors
from arion.options import Json
from arion.progress import make_progress
from arion.receipt import Receipt, verify_receipt
from arion.variant_verify import verify_variant
from arion.withdrawal import withdraw_owner
from arion.withdrawal_before import WithdrawalOrder
from client.artefacts import Fetch, fetch_served, served_index
from client.membership import MEMBERSHIP_FILE, dialled
from models.variants.index import SHOWN, Entry, Index, read_index
from models.variants.registry import add_artefact, create_registry, fetch

_PIPED_WIDTH = 120
_MB = 10**6

registry_app = typer.Typer(
    no_args_is_help=True, help="Artefacts with their versions and lineage: add, list, fetch."
)

Registry = Annotated[Path, typer.Argument(metavar="REGISTRY", help="A registry's folder.")]
Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A registry's folder, or a member's home: then what its coordinator serves.",
    ),
]
Signer = Annotated[
    str | None,
    typer.Option(metavar="FINGERPRINT", help="Who must have signed, obtained out of band."),
]


@registry_app.command("create")
def create_command(registry: Registry) -> None:
    """Make an empty registry.

    Example: arion model registry create registry/
    """
    with user_errors():
        create_registry(registry)


@registry_app.command("add")
def add_command(
    registry: Registry,
    artefact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="An exported folder.")],
    *,
    signer: Signer = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Take an artefact that nobody signed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check an artefact as `arion model verify` does and take it in.

    Example: arion model registry add registry/ phone/ --signer arion:0f1e2d3c-...
    """
    with user_errors():
        verdict = verify_variant(artefact, signer, unsigned=unsigned)
        entry = add_artefact(registry, artefact)
    typer.echo(entry.model_dump_json(indent=2) if as_json else entry.digest)
    _tell_signer(verdict.signer, signer)


@registry_app.command("list")
def list_command(source: Source, as_json: Json = False) -> None:
    """List versions, where they came from, and their artefacts, revoked ones too.

    Example: arion model registry list node/
    """
    with user_errors():
        if _is_home(source):
            with dialled(source) as link:
                index = served_index(link)
        else:
            index = read_index(source)
    if as_json:
        typer.echo(index.model_dump_json(indent=2))
    else:
        _print_index(index)


@registry_app.command("fetch")
def fetch_command(
    source: Source,
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="Its beginning is enough.")],
    *,
    out: Annotated[Path, typer.Option(help="Where it goes; must not exist.")],
    signer: Signer = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Take an artefact that nobody signed.")
    ] = False,
) -> None:
    """Fetch an artefact, every byte and its signature checked; a revoked one is refused.

    From a coordinator, the same command after a stop goes on where it was.

    Example: arion model registry fetch node/ 3fa1c0 --out phone/ --signer arion:0f1e2d3c-...
    """
    signers: list[str | None] = []

    def check(folder: Path) -> None:
        signers.append(verify_variant(folder, signer, unsigned=unsigned).signer)

    with user_errors():
        if _is_home(source):
            entry = _fetch_served(source, digest, out, check)
        else:
            entry = fetch(source, digest, out, check)
    typer.echo(f"{out}: {entry.container} {entry.number_format}, {entry.file_bytes:,} bytes")
    _tell_signer(signers[-1], signer)


def withdraw_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A modular model's folder.")],
    *,
    owner: Annotated[str, typer.Option(help="Whose experts go.")],
    key: Annotated[Path, typer.Option(help="Identity key that signs receipt and artefacts.")],
    receipt: Annotated[Path, typer.Option(help="Where the receipt goes; must not exist.")],
    registry: Annotated[
        Path | None, typer.Option(help="Registry whose artefacts are revoked and made anew.")
    ] = None,
    heldout: Annotated[
        list[Path] | None, typer.Option(help="Folder of public text to compare on; repeatable.")
    ] = None,
    public: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of public text to distil dense artefacts on again; repeatable."),
    ] = None,
    canaries: Annotated[
        Path | None,
        typer.Option(help="secrets.json of `arion privacy plant`, planted in the owner's text."),
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Folder with the ledger of the owner's shared rounds.")
    ] = None,
    pins: Annotated[
        Path | None, typer.Option(help="Keys of those ledgers. Default: pins.json beside them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove an owner's experts, revoke and remake every artefact that held them, sign a receipt.

    A withdrawal that was interrupted is finished by the same command.

    Example: arion model withdraw federation/ --owner court --registry registry/
    --key identity.key --receipt court.receipt.json
    """
    with user_errors(), closing(make_progress()) as progress:
        order = WithdrawalOrder(
            model=model,
            owner=owner,
            key=key,
            receipt=receipt,
            registry=registry,
            heldout=tuple(heldout or ()),
            public=tuple(public or ()),
            canaries=canaries,
            ledger=ledger,
            pins=pins,
        )
        found = withdraw_owner(order, progress)
    _print_receipt(found, as_json)


def receipt_command(
    path: Annotated[Path, typer.Argument(metavar="RECEIPT", help="A withdrawal's receipt.")],
    *,
    signer: Signer = None,
    model: Annotated[
        Path | None, typer.Option(help="The modular model, to be held against the receipt.")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="The registry, to be held against the receipt.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a withdrawal's receipt offline, and the model and the registry against it.

    Example: arion model receipt court.receipt.json --model federation/ --registry registry/
    """
    with user_errors():
        found, signed_by = verify_receipt(path, signer, model, registry)
    _print_receipt(found, as_json)
    _tell_signer(signed_by, signer)


def _tell_signer(found: str | None, expected: str | None) -> None:
    """Say who signed where nobody said who must have; on standard error."""
    if found is not None and expected is None:
        typer.echo(
            f"Signed by {found}: compare it with the signer, or give it as --signer.", err=True
        )


def _is_home(source: Path) -> bool:
    return (source / MEMBERSHIP_FILE).is_file()


def _fetch_served(home: Path, digest: str, out: Path, check: Callable[[Path], None]) -> Entry:
    with closing(make_progress()) as progress, dialled(home) as link:
        begun: list[int] = []

        def told(done: int, total: int) -> None:
            if not begun:
                progress.stage("fetching, MB", total // _MB)
                begun.append(total)
            progress.step(done // _MB, "")

        return fetch_served(link, Fetch(digest, out, check, told))


def _print_index(index: Index) -> None:
    table = Table("artefact", "made of", "format", "experts", "owners", "state", box=None)
    for each in index.artefacts:
        state = each.status if each.is_active else f"revoked: {each.because}"
        if each.replaced_by is not None:
            state += f"; see {each.replaced_by[:SHOWN]}"
        made_of = f"{each.version[:SHOWN]}"
        kind = f"{each.container} {each.number_format}"
        owners = ", ".join(each.owners)
        table.add_row(each.digest[:SHOWN], made_of, kind, str(each.experts), owners, state)
    console = Console()
    (console if console.is_terminal else Console(width=_PIPED_WIDTH)).print(table)
    for version in index.versions:
        origin = f", from {version.derived_from[:SHOWN]}" if version.derived_from else ""
        typer.echo(f"{version.digest[:SHOWN]}: {version.name}{origin} ({version.because})")


def _print_receipt(receipt: Receipt, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(receipt.model_dump(mode="json"), indent=2, ensure_ascii=False))
        return
    typer.echo(f"{receipt.owner} withdrew from {receipt.model} at {receipt.created}.")
    typer.echo(f"Removed: {', '.join(receipt.removed)}. Unchanged: {len(receipt.unchanged)} files.")
    for each in receipt.revoked or ():
        by = f"replaced by {each.replaced_by[:SHOWN]}" if each.replaced_by else each.why_none
        typer.echo(f"Revoked: {each.artefact[:SHOWN]}, {by}")
    if receipt.canaries is not None:
        was, now = receipt.canaries.before, receipt.canaries.after
        verdict = "as chance would" if now.is_chance else "MORE THAN CHANCE WOULD"
        typer.echo(
            f"{now.secrets} planted secrets: {was.mean_bits:.1f} bits exposed before (p = "
            f"{was.p_value:.1e}), {now.mean_bits:.1f} after (p = {now.p_value:.2g}), {verdict}."
        )
    for sentence in (*receipt.remains, *receipt.not_claimed):
        typer.echo(sentence)
