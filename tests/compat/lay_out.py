"""Lay out a service and a federation by the version that is on the path, and order two runs.

    python lay_out.py FOLDER PORT ENROLMENT_PORT

`exact` has no noise, draws every unit and wants every member in every sum: its model has one value.
`private` has noise, and goes on without one member. A test runs this with an older version's code,
its own helpers included, so that every file of the homes is one that that version wrote.
"""

import sys
from pathlib import Path

from coordinator.service.home import ServiceHome, ServiceSettings
from tests.service.institutions import EXACT, Institutions
from tests.service.running import RunningService
from tests.small_federation import FEDERATION, STEP, build, lay_ground

ROUNDS, SPARE = 16, 14
"""Rounds of each run, and attempts that may be lost to members that start again."""
RUNS = ("exact", "private")
BASE = Path("ground", "base")


def main(root: Path, port: int, enrolment_port: int) -> None:
    """Make homes below a folder; members have joined and consented, and nothing runs."""
    (root / "ground").mkdir()
    settings = ServiceSettings(
        federation=FEDERATION, hosts=("localhost",), port=port, enrolment_port=enrolment_port
    )
    service = RunningService(ServiceHome.create(root / "service", settings))
    private = {"noise_multiplier": 2.0, "releases": ROUNDS + SPARE}
    federation = build(
        lay_ground(root / "ground"), root / "federation", private, seed=None, rounds=ROUNDS,
        runtime="arion-grpc", deadline_s=120.0,
    )  # fmt: skip
    there = Institutions(service, federation)
    for name in federation.homes.nodes:
        there.consent(name, allow_unprotected_release=True)
    everyone = len(federation.homes.nodes)
    changes = {**EXACT, "releases": ROUNDS + SPARE, "honest_survivors": everyone - 1}
    exact = type(STEP)(**{**STEP.model_dump(), **changes})
    there.order("exact", step=exact, n_min=everyone)
    there.order("private")
    service.stop()
    service.home.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
