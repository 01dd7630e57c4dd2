"""Hundreds of rounds while something is killed every few seconds, and whether anything breaks.

The coordinator's service (`arion coordinator serve`), eight nodes (`arion node run`) and the driver
(`arion run submit`, `resume`, `cancel`) are processes of their own on loopback under mutual TLS.
Each is started again half a second after it ended, as systemd would. Every few seconds one is
killed with SIGKILL: a kind is drawn, then one of it. Runs follow one another; one whose round had
all its attempts is cancelled, and the next begins.

After each run, and at the end, everything on the disk is held against the rules of
`benchmarks.soak_checks`; the first violation ends the soak, with exit code 1. When enough rounds
have ended nothing is killed any more, and one last run must end without an aborted attempt.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.harness import publish
from benchmarks.soak_federation import SoakFederation
from benchmarks.soak_rows import report
from benchmarks.soak_run import Soak

SETTINGS_FILE = "soak.json"
QUICK = {"rounds": 4, "nodes": 4, "run_rounds": 2, "missing": 1}
FULL = {"rounds": 200, "nodes": 8, "run_rounds": 20, "missing": 2}


def main() -> int:
    """Soak, and say what came of it; 1 where a rule was broken."""
    options = _options()
    os.environ["OMP_NUM_THREADS"] = "1"  # ten processes share the cores
    settings = _settings(options)
    folder = options.out.resolve()
    until = time.monotonic() + options.minutes * 60
    federation = SoakFederation(folder)
    if not options.resume:
        sizes = (settings[name] for name in ("nodes", "run_rounds", "missing"))
        federation = SoakFederation.create(folder, *sizes)
        (folder / SETTINGS_FILE).write_text(json.dumps(settings) + "\n")
    soak = Soak(federation, settings["rounds"], options.seconds_between_kills, settings["seed"])
    soak.run(until)
    publish(
        list(report(soak, settings | {"between_kills_s": options.seconds_between_kills})),
        options.json,
    )
    for fault in soak.violations:
        print(f"VIOLATION  {fault}", file=sys.stderr)
    return 1 if soak.violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, help="rounds that shall end (200)")
    parser.add_argument("--nodes", type=int, help="institutions (8)")
    parser.add_argument("--missing", type=int, help="nodes that a sum can do without (2)")
    parser.add_argument("--seconds-between-kills", type=float, default=4.0, metavar="S")
    parser.add_argument("--seed", type=int, default=1, help="of who is killed and when")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop killing after so many")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on with what DIR holds")
    parser.add_argument("--quick", action="store_true", help="4 rounds, 4 nodes; two minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to this file")
    options = parser.parse_args()
    if options.resume != (options.out / SETTINGS_FILE).exists():
        parser.error(
            f"Expected {'a soak' if options.resume else 'no soak yet'} in {options.out}, got "
            f"{'none' if options.resume else 'one'}. Choose another --out, or "
            f"{'leave out' if options.resume else 'add'} --resume."
        )
    return options


def _settings(options: argparse.Namespace) -> dict[str, int]:
    """What was asked for; a soak that goes on keeps its nodes, and may be given more rounds."""
    usual = QUICK if options.quick else FULL
    given = {name: getattr(options, name, None) for name in usual}
    chosen = {name: usual[name] if value is None else value for name, value in given.items()}
    if not options.resume:
        return chosen | {"seed": options.seed}
    kept = json.loads((options.out / SETTINGS_FILE).read_text())
    return kept | ({"rounds": options.rounds} if options.rounds else {})


if __name__ == "__main__":
    sys.exit(main())
