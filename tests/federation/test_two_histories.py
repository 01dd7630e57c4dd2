"""A coordinator and a colluder that keep two histories of one run, each with half of the others."""

import shutil
from typing import Any

import pytest
from flwr.app import Message

from coordinator.errors import RunError
from coordinator.witnesses import Witnesses
from privacy.secagg.parameters import complete_parameters, smallest_roster
from tests.away import Reach, debits, drive
from tests.small_federation import Make, SmallFederation

HONEST = ("east", "north", "south", "west")
OPENING = {"query.keys", "query.roster", "query.reveals", "query.recall"}


class Deaf(Reach):
    """One enters epochs and is asked nothing else: it sees no head and pays nothing."""

    def __init__(self, federation: SmallFederation, *away: str, deaf: str) -> None:
        super().__init__(federation, *away)
        drops = self._drops

        def drop(name: str, message: Message) -> bool:
            is_deaf = name == deaf and message.metadata.message_type not in OPENING
            return is_deaf or drops(name, message)

        self._drops = drop


@pytest.fixture(autouse=True)
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator does not mind who was not shown its ledger."""

    def show_all(self: Witnesses, members: Any, deadline_s: float) -> None:
        self.collect(members, deadline_s)

    monkeypatch.setattr(Witnesses, "show_all", show_all)


def test_two_rosters_that_share_honest_members_make_no_two_sums(federation_of: Make) -> None:
    """Of five with c = 1: east and north with the mole, in a roster with south; and the others.

    Without the quorum of all five, both histories would have had three rounds, and no fork seen.
    """
    federation = federation_of(*HONEST, "mole")
    heads = federation.homes.root / "heads"
    heads.mkdir()
    for away, deaf, epochs in (("west", "south", 0), ("north", "east", 100)):
        home = federation.homes.root / f"without-{away}"
        shutil.copytree(federation.homes.coordinator, home)
        shutil.copytree(heads, home / "members", dirs_exist_ok=True)
        (home / "epochs").write_text(f"{epochs}\n")
        clean = shutil.copytree(federation.homes.nodes["mole"], home / "mole")
        with pytest.raises(RunError, match="3 attempts"):
            drive(federation, Deaf(federation, away, deaf=deaf), home)
        shutil.rmtree(federation.homes.nodes["mole"])  # it forgets, and helps again
        shutil.copytree(clean, federation.homes.nodes["mole"])
        ignore = shutil.ignore_patterns("mole*")
        shutil.copytree(home / "members", heads, ignore=ignore, dirs_exist_ok=True)
        ledger = (home / "ledger" / "entries.jsonl").read_text()
        assert ledger.count('"no-quorum"') == 3
        assert "round-recorded" not in ledger
    assert debits(federation) == [3, 0, 3, 3, 3]  # uploads are charged, and the mole forgot its own


@pytest.mark.parametrize("colluders", [1, 2, 5])
def test_any_two_quorums_share_an_honest_member(colluders: int) -> None:
    """Whatever the rosters that they are of."""
    for pinned in range(3 + colluders, 51):
        for members in range(smallest_roster(pinned, colluders), pinned + 1):
            quorum = complete_parameters(members, colluders, 0, pinned).quorum
            assert colluders < 2 * quorum - pinned
            assert quorum <= members
