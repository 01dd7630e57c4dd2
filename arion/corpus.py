"""The text of a simulation: institutions with their splits, and how rows are made of them.

A simulation sees every institution's text, which no coordinator ever does: that is what makes a
loss per institution and a routing by domain possible here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from arion.federation import Share, common_unit, share_out
from arion.institutions import Institution, find_institutions
from arion.run_file import DataSection, RunFile, RunFileError
from client.data import Record, Split, load_config, split_records
from client.training_records import own_part
from models.tokenizer import Row, Tokenizer
from privacy.units import INSTITUTION

MINIMUM_NODES = 3


@dataclass(frozen=True)
class Corpus:
    """Institutions that take part, those that are only evaluated on, and their records.

    Attributes:
        shares: one per node.
        unseen: institutions that take no part.
        section: splits and caps.
        unit: name of the run's privacy unit.

    """

    shares: tuple[Share, ...]
    unseen: tuple[Institution, ...]
    section: DataSection
    unit: str

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        """Records of each node, split as the node itself splits them."""
        return {share.name: self._split(share) for share in self.shares}

    @cached_property
    def unseen_records(self) -> Mapping[str, tuple[Record, ...]]:
        """All records of each unseen institution: none of them was trained on."""
        return {i.name: i.records() for i in self.unseen}

    def evaluation(self, part: str, limit: int) -> dict[str, tuple[Record, ...]]:
        """Records to evaluate on, by node and unseen institution.

        Args:
            part: "heldout" or "validation"; unseen institutions are left out of the latter.
            limit: most records of each, spread evenly over what there is.

        """
        found = {name: getattr(split, part) for name, split in self.splits.items()}
        if part == "heldout":
            found.update(self.unseen_records)
        return {name: _spread(records, limit) for name, records in found.items()}

    def _split(self, share: Share) -> Split:
        institution = share.institution
        records = own_part(institution.records(), share.part, share.parts)
        split = split_records(
            records, heldout=self.section.heldout, validation=self.section.validation
        )
        for part in ("train", "validation", "heldout"):
            if not getattr(split, part):
                raise RunFileError(
                    f"Expected records of {share.name!r} in each part of the split, got none in "
                    f"{part!r} of {len(records)}. Add records, use fewer nodes, or change "
                    "data.heldout and data.validation."
                )
        return split


def open_corpus(data_dir: Path, run: RunFile) -> Corpus:
    """Find the institutions, set the unseen ones apart, and share the others out to nodes.

    Raises:
        DataError: unreadable data. RunFileError: an unknown unseen institution, too few nodes, or
            an institution in parts that is to be protected as a whole.

    """
    section = run.data
    config = load_config(section.config) if section.config else None
    institutions = find_institutions(data_dir, config)
    names = {institution.name: institution for institution in institutions}
    wanted = {name.lower() for name in section.unseen}
    if unknown := sorted(wanted - set(names)):
        raise RunFileError(
            f"Expected unseen institutions among {', '.join(names)}, got {', '.join(unknown)}. "
            "Correct --unseen."
        )
    seen = [i for i in institutions if i.name not in wanted]
    shares = share_out(seen, run.federation.nodes)
    if not len(shares) >= MINIMUM_NODES:
        raise RunFileError(
            f"Expected at least {MINIMUM_NODES} nodes, got {len(shares)}: with fewer, one member's "
            "update could be told from the sum. Add institutions, or deal their units out to more "
            "nodes with --nodes."
        )
    if run.privacy.unit == INSTITUTION and len(shares) > len(seen):
        raise RunFileError(
            f"Expected a node for each institution under unit = {INSTITUTION!r}, got {len(shares)} "
            f"nodes for {len(seen)}. Lower --nodes: a part of an institution is not the whole."
        )
    unit = run.privacy.unit or common_unit([share.institution.config for share in shares])
    return Corpus(shares, tuple(names[name] for name in sorted(wanted)), section, unit)


def first_rows(
    records: Mapping[str, Sequence[Record]], tokenizer: Tokenizer, length: int
) -> dict[str, list[Row]]:
    """The first sequence of every record, by institution: what is evaluated."""
    return {
        name: [rows[0] for rows in tokenizer.rows([r.text for r in found], length, 1)]
        for name, found in records.items()
    }


def _spread(records: Sequence[Record], limit: int) -> tuple[Record, ...]:
    if len(records) <= limit:
        return tuple(records)
    return tuple(records[index * len(records) // limit] for index in range(limit))
