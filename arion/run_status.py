"""Where the runs of a coordinator's service stand, read from what their drivers made durable.

Every command so tells the truth while another process drives the run, or after it was killed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.attempts import Attempt, Phase, read_attempts
from coordinator.cancellation import Cancellation
from coordinator.driver_lock import is_closed, is_driven
from coordinator.errors import RunError
from coordinator.service.home import ServiceHome
from coordinator.settings import SETTINGS_FILE, load_settings
from coordinator.shared import RUNS_FOLDER
from privacy.enrolment import NAME

STOPPED_FILE = "STOPPED"


@dataclass(frozen=True)
class Waiting:
    """What a run that is driven asks members now.

    Attributes:
        action: as in `ACTIONS`.
        asked: how many members.
        missing: those that did not answer yet.

    """

    action: str
    asked: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        state: "submitted" (never begun), "running", "stopped" (may be resumed, also where only its
            end is to be told), "cancelling", "cancelled" or "finished", with fewer rounds where the
            schedule was used up before the last.
        round: rounds recorded.
        rounds: rounds in all.
        members: names of those that are pinned, sorted.
        attempts: those made, the newest last.
        reason: why it stopped, or "".
        waiting: what members are asked, where that is known and they are.

    """

    name: str
    state: str
    round: int
    rounds: int
    members: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    reason: str
    waiting: Waiting | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in {"cancelled", "finished"}


def list_runs(service: ServiceHome) -> list[RunStatus]:
    """Return all runs, sorted by name."""
    return [status_now(service, home) for home in homes_of(service)]


def find(service: ServiceHome, name: str) -> Path:
    """Return a run's home.

    Raises:
        RunError: there is none of that name.

    """
    home = home_of(service, name)
    if not NAME.fullmatch(name) or not (home / SETTINGS_FILE).exists():
        raise RunError(f"Expected a run's name, got {name[:80]!r}. See arion run list.")
    return home


def status_of(home: Path) -> RunStatus:
    """Read where the run in a home stands."""
    settings = load_settings(home)
    attempts = tuple(read_attempts(home))
    recorded = sum(attempt.phase == Phase.RECORDED for attempt in attempts)
    reason = home / STOPPED_FILE
    return RunStatus(
        name=settings.run,
        state=_state(home, attempts, is_finished=recorded == settings.rounds),
        round=recorded,
        rounds=settings.rounds,
        members=tuple(sorted(settings.members)),
        attempts=attempts,
        reason=reason.read_text().strip() if reason.exists() else "",
    )


def status_now(service: ServiceHome, home: Path) -> RunStatus:
    """Read where a run stands, and what it waits for."""
    status = status_of(home)
    asked = service.mailbox.asked(status.name)
    if status.state not in ("running", "cancelling") or asked is None:
        return status
    names = {member.address: member.name for member in service.registry.members()}
    action, count, missing = asked
    waiting = Waiting(action, count, tuple(sorted(names[address] for address in missing)))
    return replace(status, waiting=waiting)


def _state(home: Path, attempts: tuple[Attempt, ...], *, is_finished: bool) -> str:
    driven, is_cancelled = is_driven(home), Cancellation(home).is_asked
    if is_closed(home) and not driven:
        return "cancelled" if is_cancelled and not is_finished else "finished"
    if is_cancelled:
        return "cancelling"
    if driven:
        return "running"
    return "stopped" if attempts or (home / STOPPED_FILE).exists() else "submitted"


def home_of(service: ServiceHome, name: str) -> Path:
    """Where a run of this name is or would be."""
    return service.path / RUNS_FOLDER / name


def homes_of(service: ServiceHome) -> Iterator[Path]:
    """Yield the homes of all runs, sorted by name."""
    folder = service.path / RUNS_FOLDER
    for home in sorted(folder.iterdir()) if folder.is_dir() else ():
        if NAME.fullmatch(home.name) and (home / SETTINGS_FILE).exists():
            yield home
