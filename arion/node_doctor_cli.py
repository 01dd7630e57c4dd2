"""`arion node doctor`: what keeps a node from serving, before a run finds it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from client.doctor import examine

_MARKS = {"ok": "ok  ", "warning": "WARN", "failure": "FAIL"}


def doctor_command(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="The node's home.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine settings, consent, data, disk, memory, certificate, clock and reachability.

    Every finding says what to do; exit code 1 where one keeps the node from serving. For
    institutions.

    Example: arion node doctor node
    """
    findings = examine(home)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{_MARKS[finding.level]}  {finding.check}: {finding.says}")
    if any(finding.level == "failure" for finding in findings):
        raise typer.Exit(1)
