"""What the members of an epoch signed, as a run's home keeps it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from privacy.identity import Signed
from privacy.ledger.head import parse_signed_line, signed_line


@dataclass(frozen=True)
class EpochRecord:
    """Enough to enter an epoch again while some of its members are away.

    Attributes:
        number: of the epoch.
        digest: of its roster, hex.
        bundles, reveals: by member; whoever reads them verifies them.

    """

    number: int
    digest: str
    bundles: Mapping[str, Signed]
    reveals: Mapping[str, Signed]

    def to_bytes(self) -> bytes:
        """Return the record as JSON."""
        statements = {"bundles": self.bundles, "reveals": self.reveals}
        return json.dumps(
            {
                "number": self.number,
                "digest": self.digest,
                **{
                    kind: {name: signed_line(signed).decode() for name, signed in each.items()}
                    for kind, each in statements.items()
                },
            }
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote; raises ValueError for anything else."""
        try:
            read = json.loads(data)
            statements = {
                kind: {name: parse_signed_line(line.encode()) for name, line in read[kind].items()}
                for kind in ("bundles", "reveals")
            }
            return cls(int(read["number"]), str(read["digest"]), **statements)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"Expected an epoch's record, got {type(error).__name__}.") from error
