"""Runs of a coordinator's service, each in a folder of its home: made, carried on, ended.

A run's home appears whole or not at all.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

from arion.preflight import check_liveness
from arion.run_federation import final_vector, write_merged_model
from arion.run_file import RunFile
from arion.run_order import RunOrder, order_run
from arion.run_status import STOPPED_FILE, RunStatus, find, home_of, homes_of, status_of
from coordinator.app import GridChannel
from coordinator.cancellation import Cancellation
from coordinator.driver import RunDriver
from coordinator.driver_lock import is_driven
from coordinator.errors import RunError
from coordinator.grid import ServiceGrid
from coordinator.outcome import Observer, observing
from coordinator.service.home import ServiceHome
from coordinator.settings import load_settings, save_settings
from models.durable import put, sync
from privacy.consent_pins import COORDINATOR
from privacy.enrolment import NAME
from privacy.ledger.files import make_directory, replace_durably
from privacy.ledger.pins import PINS_FILE, Pin, load_pins, pins_bytes

PLAN_FILE = "plan.json"
_BASE_FOLDER = "base"


def plan_order(service: ServiceHome, run: RunFile, name: str) -> RunOrder:
    """Work out what a run would be, without changing anything; see `order_run`.

    Raises:
        RunError: no name for a run, or one that an earlier run has.

    """
    if not NAME.fullmatch(name):
        raise RunError(
            f"Expected a run's name of a-z, 0-9 and -, got {name[:80]!r}. Choose one with --name."
        )
    if home_of(service, name).exists():
        raise RunError(
            f"Expected a name that no run has had, got {name!r}: nodes take part in a run once. "
            "Choose another with --name, or go on with it: arion run resume."
        )
    members = {member.name: member.identity_key for member in service.registry.nodes()}
    earlier = [_plan(home) for home in homes_of(service) if _has_begun(home)]
    return order_run(run, name, service.settings.federation, members, earlier)


def submit(service: ServiceHome, run: RunFile, name: str) -> RunOrder:
    """Make a run's home, whole: base model, settings, plan. No node hears of it yet.

    Raises:
        RunError, RunFileError, PreflightError: nothing was made.

    """
    order = plan_order(service, run, name)
    settings = order.settings
    check_liveness(settings.base_model, settings.recipe, settings.optimiser, settings.rounds)
    _pin(service, order)
    part = home_of(service, f".{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    make_directory(part)
    shutil.copytree(settings.base_model, part / _BASE_FOLDER)
    for path in (*part.rglob("*"), part):
        sync(path)
    replace_durably(part / PLAN_FILE, json.dumps(order.plan, indent=1).encode() + b"\n")
    places = {"base_model": Path(_BASE_FOLDER), "coordinator": Path("../..")}
    save_settings(part, settings.model_copy(update=places))
    put(part, home_of(service, name))
    return order


def carry_on(service: ServiceHome, name: str, observer: Observer) -> RunStatus:
    """Drive a run to its end in this process, from wherever it stands.

    Args:
        service: the coordinator's; its ports must be served, by any process.
        name: the run's.
        observer: called after every attempt.

    Raises:
        RunError: there is no such run, another process drives it, or it cannot go on; where it
            could be tried again, `RunStatus.reason` says the same later.

    """
    home = find(service, name)
    if status_of(home).is_over:
        return status_of(home)
    grid = ServiceGrid(name, service.registry, service.mailbox, load_settings(home).members)
    with closing(RunDriver(home, GridChannel(grid))) as driver, closing(grid):
        (home / STOPPED_FILE).unlink(missing_ok=True)
        try:
            with observing(observer):
                driver.run()
        except (ValueError, OSError) as error:
            replace_durably(home / STOPPED_FILE, str(error).encode() + b"\n")
            raise
    return status_of(home)


def cancel(service: ServiceHome, name: str, observer: Observer) -> RunStatus:
    """End a run before its last round; what nodes released stays charged.

    A process that drives it notices. Where none does, this one writes the end down.

    Raises:
        RunError: there is no such run, or it is finished.

    """
    home = find(service, name)
    status = status_of(home)
    if status.state == "finished":
        raise RunError(f"Expected a run that goes on, got {name!r}, which is finished.")
    Cancellation(home).ask()
    return status_of(home) if is_driven(home) else carry_on(service, name, observer)


def export_model(service: ServiceHome, name: str, folder: Path) -> RunStatus:
    """Write a run's model, adapters merged, as a plain model folder; return where the run stands.

    Of a run that was cancelled: after the rounds that it made.

    Raises:
        RunError: there is no such run, it is not over or made no round, or the folder exists.

    """
    home = find(service, name)
    status = status_of(home)
    if not (status.is_over and status.round):
        raise RunError(
            f"Expected a run that is finished, or was cancelled after a round, got {name!r}: "
            f"{status.state}, {status.round} of {status.rounds} rounds. Watch it: arion run watch. "
            "Go on with it: arion run resume. Where it cannot go on: arion run cancel."
        )
    if folder.exists():
        raise RunError(f"Expected a folder that does not exist, got {folder}. Choose another.")
    settings = load_settings(home)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write_merged_model(settings.base_model, settings.recipe, final_vector(home, status.round), part)
    put(part, folder)
    return status


def _plan(home: Path) -> dict[str, Any]:
    path = home / PLAN_FILE
    if not path.exists():
        raise RunError(f"Expected the plan of an earlier run in {path}, got none. Restore it.")
    plan: dict[str, Any] = json.loads(path.read_bytes())
    return plan


def _has_begun(home: Path) -> bool:
    """Whether a run may have been charged, or may still be."""
    status = status_of(home)
    return bool(status.attempts) or not status.is_over


def _pin(service: ServiceHome, order: RunOrder) -> None:
    """Add the members' keys, and our own, to what `ledger verify` checks this home against."""
    path = service.path / PINS_FILE
    pins = load_pins(path) if path.exists() else {}
    new = {name: Pin(public_key=key, kind="node") for name, key in order.settings.members.items()}
    new[COORDINATOR] = Pin(public_key=service.key.public_key.hex(), kind="coordinator")
    for name, pin in new.items():
        if pins.get(name, pin) != pin:
            raise RunError(
                f"Expected the identity key that {name!r} had in earlier runs, got another. Have "
                "the institution join from its old home, or under another name."
            )
    replace_durably(path, pins_bytes({**pins, **new}))
