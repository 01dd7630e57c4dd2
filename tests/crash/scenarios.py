"""What a process does that must survive its death: each act, and what must hold afterwards.

A scenario is prepared in a folder, acts in a process of its own, saying what is done as soon as it
is, and is checked in every state of the folder that a crash may leave. To check is also to go on:
what was not done is done, with the same commands.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tests.crash.actors import serve
from tests.crash.careless_acts import CARELESS
from tests.crash.coordinator_acts import ClosePhase, PublishModel
from tests.crash.node_acts import AppendLedger, RenewAtNode, SignSet
from tests.crash.release_acts import Release
from tests.crash.service_acts import AcceptUpload, Enrol, Initialise, Migrate, RenewAtService


class Scenario(Protocol):
    """One act."""

    def prepare(self, folder: Path, rests: Path) -> None:
        """Make the folder as it is before; `rests` holds what act and check both know."""

    def act(self, folder: Path, rests: Path) -> None:
        """Act, and say each thing that is done."""

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        """Assert what must hold after a crash, then go on to the end."""


SCENARIOS: dict[str, Scenario] = {
    "initialise": Initialise(),
    "enrol": Enrol(),
    "accept-upload": AcceptUpload(),
    "close-phase": ClosePhase(),
    "publish-model": PublishModel(),
    "append-ledger": AppendLedger(),
    "sign-set": SignSet(),
    "release": Release("schedule"),
    "release-filter": Release("filter"),
    "renew-at-service": RenewAtService(),
    "renew-at-node": RenewAtNode(),
    "migrate": Migrate(),
}


def act(arguments: list[str]) -> None:
    """Act out NAME in FOLDER with RESTS."""
    name, folder, rests = arguments
    if name in CARELESS:
        CARELESS[name](Path(folder))
        return
    SCENARIOS[name].act(Path(folder), Path(rests))


if __name__ == "__main__":
    serve(act)
