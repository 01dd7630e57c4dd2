"""`arion node consent draft`, `members`, `pin`: an institution's side before its first run."""

import json
import tomllib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.errors import user_errors
from arion.institutions import own_config
from arion.options import Json
from arion.toml_file import write_toml
from client.config import CONSENT_FILE, IDENTITY_FILE, NODE_FILE, NodeError, load_node_config
from client.data import DataConfig, describe, detect_config, load_config
from client.ledgers import auditor_pins
from client.membership import MembershipFile, dialled
from privacy.consent import parse_consent
from privacy.consent_draft import Draft
from privacy.consent_pins import COORDINATOR, check_read_out, pin, pinned_key, read_clauses
from privacy.identity import IdentityKey, fingerprint
from privacy.ledger.files import replace_durably
from privacy.ledger.pins import PINS_FILE, Pin, pins_bytes
from privacy.units import RECORD

consent_app = typer.Typer(no_args_is_help=True, help="What an institution will agree to.")

NodeHome = Annotated[Path, typer.Option(help="The node's home, on the institution's machine.")]
Home = Annotated[Path, typer.Argument(metavar="HOME", help="The node's home.")]
Pairs = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME FINGERPRINT ...",
        help="A member, or coordinator; its fingerprint, as its owner read it out.",
    ),
]


@consent_app.command("draft")
def draft_command(
    home: Home,
    *,
    data: Annotated[Path, typer.Option(help="File or folder of records.")],
    base: Annotated[Path, typer.Option(help="Model folder that runs start from.")],
    purpose: Annotated[list[str], typer.Option(help="What the model is for; repeatable.")],
    config: Annotated[
        Path | None, typer.Option(help="data.toml, instead of the data's own or detection.")
    ] = None,
    data_set: Annotated[
        str | None, typer.Option(help="Name of the data.", show_default="the file's")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="For the life of the data.", min=0.01)] = 4.0,
    delta: Annotated[float, typer.Option(help="For the life of the data.")] = 1e-6,
    runs: Annotated[int, typer.Option(help="Equal runs that they last for.", min=1)] = 4,
    days: Annotated[int, typer.Option(help="Days until it expires.", min=1)] = 365,
) -> None:
    """Draft consent.toml and node.toml of a node that was approved, for an officer to change.

    The draft pins nobody else: the node starts once the others were compared and pinned.

    Example: arion node consent draft node --data notes/ --base base/ --purpose "triage of notes"
    """
    with user_errors():
        membership = MembershipFile(home).load()
        if not membership.certificate:
            raise NodeError("Expected a node that was approved, got one that waits: node join.")
        proxy = _proxy_alone(home)
        for name in (CONSENT_FILE, NODE_FILE):
            if (home / name).exists() and not (name == NODE_FILE and proxy):
                raise NodeError(
                    f"Expected no {name} in {home}, got one. Change that, or move it away first."
                )
        if not base.is_dir():
            raise NodeError(f"Expected a model folder, got none at {base}. Copy it there first.")
        fields = load_config(config) if config else _fields(data)
        draft = Draft(
            federation=membership.federation,
            name=membership.name,
            public_key=IdentityKey.load(home / IDENTITY_FILE).public_key,
            purposes=tuple(purpose),
            data_set=data_set or data.resolve().name,
            unit=fields.unit_field or RECORD,
            epsilon=epsilon,
            delta=delta,
            runs=runs,
            expires=(datetime.now(UTC) + timedelta(days=days)).date(),
        )
        text = draft.text()
        _check_rest(text)
        node = {"name": draft.name, "data": str(data.resolve()), "base_model": str(base.resolve())}
        described = {"fields": fields.model_dump(exclude_none=True)}
        write_toml(home / NODE_FILE, {**node, **proxy, **described})
        load_node_config(home)
        replace_durably(home / CONSENT_FILE, text.encode())
    typer.echo(describe(fields))
    typer.echo(f"drafted {home / CONSENT_FILE} and {home / NODE_FILE}; next, for every member:")
    typer.echo(f"  arion node members {home}")
    typer.echo(f"  arion node pin NAME FINGERPRINT --home {home}")


def members_command(home: Home, *, as_json: Json = False) -> None:
    """Show the fingerprints of all members as the coordinator relays them, and who is pinned.

    Compare each with its institution by telephone or in person, not through the coordinator.

    Example: arion node members node
    """
    with user_errors():
        relayed = relayed_keys(home)
        pinned = _pinned(home)
    rows = [
        {"name": name, "fingerprint": fingerprint(key), "pin": _pin_word(pinned.get(name), key)}
        for name, key in relayed.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['name']:<24} {row['pin']:<12} {row['fingerprint']}")


def pin_command(
    pairs: Pairs,
    *,
    home: NodeHome,
) -> None:
    """Pin keys of members, or the coordinator's, in consent.toml, if the fingerprints are the same.

    Example: arion node pin city arion:01234567-… --home node
    """
    with user_errors():
        relayed, path = relayed_keys(home), home / CONSENT_FILE
        read = fingerprints_read_out(pairs, relayed)
        for name, read_out in read:  # all before one is pinned
            check_read_out(name, read_out, relayed[name])
        for name, read_out in read:
            pin(path, name, read_out, relayed[name])
            typer.echo(f"{name} is pinned in {path}")
        clauses = read_clauses(path)
        _write_pins(home, clauses)
        missing = sorted(other for other in relayed if pinned_key(clauses, other) is None)
    if missing:
        typer.echo(f"not pinned yet: {', '.join(missing)}")
    else:
        typer.echo(f"all are pinned; read it once more: arion privacy consent explain {path}")


def fingerprints_read_out(words: Sequence[str], relayed: Collection[str]) -> list[tuple[str, str]]:
    """Read names, each with its fingerprint, of those that the coordinator relays.

    Raises:
        NodeError: an odd number of words, or a name that is not relayed.

    """
    if len(words) % 2:
        raise NodeError(
            "Expected a name and a fingerprint for each pin, got an odd number of words. Write "
            "a fingerprint as one word."
        )
    found = list(zip(words[::2], words[1::2], strict=True))
    for name, _ in found:
        if name not in relayed:
            raise NodeError(
                f"Expected an approved member or {COORDINATOR!r}, got {name[:80]!r}. See arion "
                "node members."
            )
    return found


def _fields(data: Path) -> DataConfig:
    return (own_config(data) if data.is_dir() else None) or detect_config(data)


def _proxy_alone(home: Path) -> dict[str, str]:
    """The proxy of a node.toml that holds nothing else: of a node that joined through one."""
    try:
        found = tomllib.loads((home / NODE_FILE).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return {"proxy": str(found["proxy"])} if found.keys() == {"proxy"} else {}


def relayed_keys(home: Path) -> dict[str, bytes]:
    """The keys of all members and of the coordinator, as the coordinator says them now."""
    with dialled(home) as link:
        members = link.members()
    key = MembershipFile(home).load().coordinator_key
    return {**members, COORDINATOR: bytes.fromhex(key)}


def _pinned(home: Path) -> dict[str, str]:
    """Pinned keys by name: a node's consent has them, an auditor's home those of ledgers."""
    path = home / CONSENT_FILE
    if not path.exists():
        return {name: pin.public_key for name, pin in auditor_pins(home).items()}
    clauses = read_clauses(path)
    names = (*clauses.get("members", {}), COORDINATOR)
    return {name: key for name in names if (key := pinned_key(clauses, name)) is not None}


def _pin_word(pinned: str | None, key: bytes) -> str:
    if pinned is None:
        return "not pinned"
    return "pinned" if pinned == key.hex() else "OTHER KEY"


def _check_rest(text: str) -> None:
    """Refuse values that no consent may have, which would show only once all were pinned."""
    clauses = tomllib.loads(text)
    others = {f"member-{number}": f"{number:064x}" for number in range(1, 4)}
    parse_consent(
        {
            **clauses,
            "coordinator_key": "f" * 64,
            "members": {**clauses["members"], **others},
        }
    )


def _write_pins(home: Path, clauses: dict[str, Any]) -> None:
    """Keep the pinned keys where `ledger verify` looks for them."""
    keys = dict(clauses.get("members", {}))
    pins = {name: Pin(public_key=key, kind="node") for name, key in keys.items()}
    if (key := pinned_key(clauses, COORDINATOR)) is not None:
        pins[COORDINATOR] = Pin(public_key=key, kind="coordinator")
    replace_durably(home / PINS_FILE, pins_bytes(pins))
