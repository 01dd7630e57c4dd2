"""The federation of the soak: a service and its nodes in one folder, and what its operator does.

The operator is whoever would sit at the coordinator: it submits a run, resumes one that stopped,
cancels one that cannot go on, and then submits the next.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from arion.run_status import RunStatus, status_of
from arion.toml_file import write_toml
from benchmarks.round_ours import COLLUDERS, FEDERATION, RECIPE, UNITS, build, enrol
from coordinator.attempts import Phase
from coordinator.service.home import ServiceHome, ServiceSettings, load_service_settings
from coordinator.settings import SETTINGS_FILE
from coordinator.shared import RUNS_FOLDER
from privacy.rounds import LARGEST_ATTEMPT
from privacy.secagg.parameters import quorum_for

MODEL = {"hidden_size": 16, "layers": 2, "expert_hidden_size": 16}
EPSILON_PER_RUN, DELTA_PER_RUN = 8.0, 1e-7
RUNS = 1_000
"""Runs that a consent has budget for."""
DEADLINE_S = 20.0
_LISTENS_S = 60.0


@dataclass(frozen=True)
class SoakFederation:
    """Where everything of a soak lies, and what can be read there.

    Attributes:
        folder: of the soak.

    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, nodes: int, rounds: int, missing: int) -> "SoakFederation":
        """Make model, homes and consents, and have every node join.

        Args:
            folder: of the soak.
            nodes: how many.
            rounds: of each run.
            missing: nodes that may be missing in a round, at most what a quorum bears.

        """
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder)
        n_min = nodes - min(missing, nodes - quorum_for(nodes, COLLUDERS))
        ports = _free_ports()
        settings = ServiceSettings(
            federation=FEDERATION, hosts=("localhost",), port=ports[0], enrolment_port=ports[1]
        )
        homes = build(folder, MODEL, nodes, rounds)
        with closing(ServiceHome.create(made.service, settings)) as home, made._serving():
            enrol(
                home, homes.nodes, ports, epsilon=RUNS * EPSILON_PER_RUN,
                delta=RUNS * DELTA_PER_RUN, epsilon_per_run=EPSILON_PER_RUN,
                epsilon_if_all_others_collude=RUNS * EPSILON_PER_RUN, smallest_cohort=n_min,
            )  # fmt: skip
        made._write_run_file(rounds, n_min)
        return made

    @property
    def service(self) -> Path:
        """The coordinator's home."""
        return self.folder / "service"

    @property
    def nodes(self) -> dict[str, Path]:
        """Homes by name."""
        return {home.name: home for home in sorted((self.folder / "federation/nodes").iterdir())}

    @property
    def run_file(self) -> Path:
        """What every run is made from."""
        return self.folder / "run.toml"

    def runs(self) -> dict[str, Path]:
        """Homes of all runs by name, in the order they were made."""
        folder = self.service / RUNS_FOLDER
        homes = sorted(folder.glob(f"*/{SETTINGS_FILE}")) if folder.is_dir() else []
        return {path.parent.name: path.parent for path in homes if path.parent.name[0] != "."}

    @contextmanager
    def _serving(self) -> Iterator[None]:
        process = subprocess.Popen(
            [sys.executable, "-m", "arion", "coordinator", "serve", str(self.service)],
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(load_service_settings(self.service).enrolment_port)
            yield
        finally:
            process.terminate()
            process.wait(_LISTENS_S)

    def _write_run_file(self, rounds: int, n_min: int) -> None:
        units = dict.fromkeys(self.nodes, UNITS)
        sections = {
            "model": {"base": str((self.folder / "base").resolve())},
            "training": {
                "rounds": rounds, "expected_batch": sum(units.values()) / 2,
                "sequence_length": RECIPE.sequence_length,
                "sequences_per_unit": RECIPE.sequences_per_unit,
            },
            "privacy": {
                "epsilon": EPSILON_PER_RUN, "delta": DELTA_PER_RUN,
                "spare_releases": (LARGEST_ATTEMPT - 1) * rounds,
            },
            "federation": {"n_min": n_min, "colluders": COLLUDERS},
            "service": {"unit": "record", "units": units, "deadline_s": DEADLINE_S},
        }  # fmt: skip
        write_toml(self.run_file, sections)


class Operator:
    """Says what is to be done about runs; it keeps nothing but looks at their homes.

    Args:
        federation: whose.

    """

    def __init__(self, federation: SoakFederation) -> None:
        self._federation = federation

    def last(self) -> RunStatus | None:
        """Where the newest run stands."""
        homes = self._federation.runs()
        return status_of(homes[max(homes)]) if homes else None

    def command(self) -> Sequence[str]:
        """Words of the `arion` that carries on, ends or begins a run."""
        last = self.last()
        if last is None or last.is_over:
            return self._submit(len(self._federation.runs()) + 1)
        return self.cancel(last.name) if is_spent(last) else self._run("resume", last.name)

    def cancel(self, name: str) -> Sequence[str]:
        """What ends a run."""
        return self._run("cancel", name)

    def _submit(self, number: int) -> Sequence[str]:
        named = ("--name", f"soak-{number:04d}")
        return self._run("submit", str(self._federation.run_file), *named)

    def _run(self, *words: str) -> Sequence[str]:
        return ("run", *words, "--coordinator", str(self._federation.service))


def is_spent(status: RunStatus) -> bool:
    """Whether a run's round has had all its attempts: no command but a cancellation helps."""
    if not status.attempts:
        return False
    last = status.attempts[-1]
    return last.phase == Phase.ABORTED and last.attempt == LARGEST_ATTEMPT


def rounds_of(status: RunStatus) -> tuple[int, int]:
    """Count a run's rounds that were recorded, and those that were given up."""
    begun = {attempt.round for attempt in status.attempts}
    given_up = len(begun) - status.round if status.is_over or is_spent(status) else 0
    return status.round, given_up


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket() as two:
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _wait_for(port: int) -> None:
    end = time.monotonic() + _LISTENS_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"Expected the service to listen on port {port}, got none. See its output.")
