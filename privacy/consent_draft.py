"""A consent to begin with, in words that an officer can read, change and sign off.

It pins this institution alone, and no coordinator: it cannot be enforced, and the node does not
start, before the officer has compared and pinned the others' fingerprints (`privacy.consent_pins`).
"""

from dataclasses import dataclass
from datetime import date
from typing import Any

import tomli_w

_SMALLEST_COHORT = 3


@dataclass(frozen=True)
class Draft:
    """What an officer must say before there is a draft; all else has private defaults.

    Attributes:
        federation: identifier.
        name, public_key: of this institution.
        purposes: what the trained model is for.
        data_set: name of the data that may be used.
        unit: whose data epsilon protects.
        epsilon, delta: for the life of the data.
        runs: equal runs that they shall last for.
        expires: last day.

    """

    federation: str
    name: str
    public_key: bytes
    purposes: tuple[str, ...]
    data_set: str
    unit: str
    epsilon: float
    delta: float
    runs: int
    expires: date

    def text(self) -> str:
        """Return the content of a `consent.toml`, with a word on every clause."""
        body = "\n".join(_clause(*clause) for clause in self._clauses())
        members = tomli_w.dumps({"members": {self.name: self.public_key.hex()}})
        return f"{_HEAD}\n{body}\n{_COORDINATOR}\n{_MEMBERS}\n{members}"

    def _clauses(self) -> tuple[tuple[str, str, Any], ...]:
        """A word, a name and a value of each clause."""
        per_run = self.epsilon / self.runs
        return (
            ("The federation that this node takes part in.", "federation", self.federation),
            ("What the trained model may be used for.", "purposes", list(self.purposes)),
            ("The data that may be used.", "data_set", self.data_set),
            (
                "Whose data epsilon protects: each record, all with one value of a field, or "
                '"institution".',
                "unit",
                self.unit,
            ),
            (
                '"schedule" charges a run whole before its first release; "filter" each release.',
                "accountant",
                "schedule",
            ),
            ("Budget for the life of this data, all runs together.", "epsilon", self.epsilon),
            ("", "delta", self.delta),
            (
                f"Budget of one run; epsilon lasts for {self.runs}. Of delta every run takes the "
                "same share, whatever it costs.",
                "epsilon_per_run",
                per_run,
            ),
            (
                "The same for one run if every other member conspires against this one.",
                "epsilon_if_all_others_collude",
                3 * per_run,
            ),
            (
                "No sum over fewer members than this is ever released.",
                "smallest_cohort",
                _SMALLEST_COHORT,
            ),
            ("Members that may conspire without weakening epsilon.", "tolerated_colluders", 1),
            ("Parts of the model that may be trained here; routers never are.", "trainable", ["*"]),
            (
                "Experts that this institution trains for itself stay here.",
                "owned_experts_may_leave",
                False,
            ),
            ("Where the node may run.", "runtimes", ["arion-grpc"]),
            ("Last day on which the node takes part.", "expires", self.expires),
        )


def _clause(word: str, name: str, value: Any) -> str:
    line = tomli_w.dumps({name: value}).rstrip("\n")
    return f"# {word}\n{line}" if word else line


_HEAD = """\
# A draft. Read every clause, change what your institution does not agree to, and have it signed
# off. `arion privacy consent explain` says in sentences what it allows. The node obeys this file,
# whatever the coordinator asks for.
"""
_COORDINATOR = """
# The coordinator, once its fingerprint was compared by telephone or in person:
#   arion node pin coordinator FINGERPRINT --home HOME
"""
_MEMBERS = """\
# Every member, this one among them, once its fingerprint was compared with that institution:
#   arion node pin NAME FINGERPRINT --home HOME
"""
