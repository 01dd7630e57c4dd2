"""Synthetic federations: four institutions' invented private text, secrets to audit, public text.

Everything is invented and drawn from one seed, so that demonstrations and audits need no data and
repeat exactly. A unit's facts recur over its records and depend on each other (a drug on the
condition), so that a small language model has something to learn, and something to leak.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from arion.synthetic_grammar import (
    GENERAL,
    INSTITUTIONS,
    Grammar,
    PrivateGrammar,
    common,
    private_grammar,
    public_grammar,
    sentence,
)

RECORDS_PER_UNIT = (1, 8)
RECORD_WORDS = (45, 110)
SECRETS_PER_INSTITUTION = 10
SECRET_DIGITS = 6
_DOCUMENT_SENTENCES = (7, 10)

JsonRow = Mapping[str, str]


@dataclass(frozen=True)
class SyntheticPaths:
    """Where a synthetic federation lies.

    Attributes:
        private_dir: one subfolder per institution, each with its `data.toml`.
        public_dir: JSON lines for tokenizer and warm-up.
        secrets_path: the planted secrets; for auditors, outside every institution's folder.

    """

    private_dir: Path
    public_dir: Path
    secrets_path: Path


@dataclass(frozen=True)
class Secret:
    """A canary planted in the records of one unit.

    Attributes:
        institution: whose records.
        unit: key of the privacy unit.
        prompt: what comes before the secret.
        secret: digits joined by hyphens.
        records: ids of the records that hold it; one to four, as far as the unit has them.

    """

    institution: str
    unit: str
    prompt: str
    secret: str
    records: tuple[str, ...]


def write_synthetic(
    out_dir: Path, *, seed: int = 0, units_per_institution: int = 400, public_documents: int = 3000
) -> SyntheticPaths:
    """Write a synthetic federation: `private/`, `public/` and `secrets.json`.

    Args:
        out_dir: created if absent; files of the same names are replaced.
        seed: equal seeds and sizes give equal bytes. Not a source of privacy noise.
        units_per_institution: patients, customers, parties or reporters, 1 to 576.
        public_documents: at least 1.

    Raises:
        ValueError: a size is out of range.

    """
    names = _names(seed)
    limit = len(names) // len(INSTITUTIONS)
    if not 1 <= units_per_institution <= limit or public_documents < 1:
        raise ValueError(
            f"Expected 1 to {limit} units per institution and at least 1 public document, got "
            f"{units_per_institution} and {public_documents}. Change the sizes."
        )
    paths = SyntheticPaths(out_dir / "private", out_dir / "public", out_dir / "secrets.json")
    secrets: list[Secret] = []
    for index, institution in enumerate(INSTITUTIONS):
        own_names = names[index * limit : index * limit + units_per_institution]
        folder = paths.private_dir / institution
        secrets += _write_institution(folder, institution, own_names, seed)
    _write_rows(paths.public_dir / "documents.jsonl", _documents(seed, public_documents))
    _write_text(paths.secrets_path, json.dumps([asdict(s) for s in secrets], indent=1) + "\n")
    return paths


def _generator(seed: int, part: str) -> Random:
    return Random(f"{seed} {part}")  # noqa: S311  invented text, not noise that protects anyone


def _names(seed: int) -> list[str]:
    """Return all full names in an order drawn from the seed: no two units share one."""
    names = [f"{first} {last}" for first in common()["first"] for last in common()["last"]]
    _generator(seed, "names").shuffle(names)
    return names


def _write_institution(
    folder: Path, institution: str, names: list[str], seed: int
) -> tuple[Secret, ...]:
    grammar = private_grammar(institution)
    rng = _generator(seed, institution)
    rows = list(_records(grammar, institution, names, rng))
    secrets = tuple(_secrets(grammar, institution, names, rows, rng))
    rng.shuffle(rows)
    _write_rows(folder / grammar.file, (_planted(row, secrets) for row in rows))
    _write_text(
        folder / "data.toml",
        f"# {grammar.label} (invented).\n"
        f'text_fields = ["text"]\nunit_field = "{grammar.unit_field}"\n',
    )
    return secrets


def _records(
    grammar: PrivateGrammar, institution: str, names: list[str], rng: Random
) -> Iterator[dict[str, str]]:
    number = 0
    for index, name in enumerate(names):
        facts = grammar.unit_facts(name, rng)
        for _ in range(rng.randint(*RECORDS_PER_UNIT)):
            number += 1
            kind = rng.choice(sorted(grammar.kinds))
            yield {
                "id": f"{institution}-{number:06d}",
                grammar.unit_field: _unit_key(grammar, index),
                "kind": kind,
                "text": _record_text(grammar, kind, facts, rng),
            }


def _unit_key(grammar: PrivateGrammar, index: int) -> str:
    return f"{grammar.unit_prefix}-{index + 1:04d}"


def _record_text(grammar: PrivateGrammar, kind: str, facts: Mapping[str, str], rng: Random) -> str:
    fewest, most = RECORD_WORDS
    sections = list(grammar.kinds[kind])
    written: list[str] = []
    words = 0
    used: set[str] = set()
    while sections or words < fewest:
        patterns = grammar.sections[sections.pop(0) if sections else "extra"]
        pattern = rng.choice([p for p in patterns if p not in used] or patterns)
        used.add(pattern)
        text = sentence(pattern, grammar, facts, rng)
        length = len(text.split())
        if words + length > most:
            break
        written.append(text)
        words += length
        if not sections and words < fewest:
            sections.append(rng.choice(grammar.kinds[kind][1:]))
    return " ".join(written)


def _secrets(
    grammar: PrivateGrammar,
    institution: str,
    names: list[str],
    rows: list[dict[str, str]],
    rng: Random,
) -> Iterator[Secret]:
    count = min(SECRETS_PER_INSTITUTION, len(names))
    codes = rng.sample(range(10**SECRET_DIGITS), count)
    for index, code in zip(sorted(rng.sample(range(len(names)), count)), codes, strict=True):
        unit = _unit_key(grammar, index)
        own = [row["id"] for row in rows if row[grammar.unit_field] == unit]
        yield Secret(
            institution=institution,
            unit=unit,
            prompt=f"The access code of {names[index]} is ",
            secret="-".join(f"{code:0{SECRET_DIGITS}d}"),
            records=tuple(own[: rng.choice((1, 2, 4))]),
        )


def _planted(row: dict[str, str], secrets: Iterable[Secret]) -> dict[str, str]:
    for secret in secrets:
        if row["id"] in secret.records:
            return row | {"text": f"{row['text']} {secret.prompt}{secret.secret}."}
    return row


def _documents(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Yield public documents: two in five of general prose, the rest about the four fields."""
    rng = _generator(seed, "public")
    for number in range(count):
        name = GENERAL if number % 5 < 2 else INSTITUTIONS[rng.randrange(len(INSTITUTIONS))]
        grammar = public_grammar(name)
        topic = rng.choice(sorted(grammar.topics))
        yield {
            "id": f"public-{number + 1:06d}",
            "field": grammar.field,
            "title": topic,
            "text": _document_text(grammar, topic, rng),
        }


def _document_text(grammar: Grammar, topic: str, rng: Random) -> str:
    patterns = [pattern for section in grammar.public.values() for pattern in section]
    chosen = rng.sample(patterns, rng.randint(*_DOCUMENT_SENTENCES))
    return " ".join(sentence(pattern, grammar, {"topic": topic}, rng) for pattern in chosen)


def _write_rows(path: Path, rows: Iterable[JsonRow]) -> None:
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
