"""Text of the composition study: four owners' domains and public text, split and tokenised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from client.data import DataConfig, Record, read_shard, split_records
from client.shards import data_files
from models.pretrain import token_stream
from models.tokenizer import Row, Tokenizer

PUBLIC = "public"
LENGTH = 128
_EVALUATED = 120

_TEXT = DataConfig(text_fields=("text",))
SOURCES: Mapping[str, Mapping[str, DataConfig]] = {
    PUBLIC: {
        "wikitext2": _TEXT,
        "ebooks": _TEXT,
    },
    "medical": {
        "medquad": DataConfig(
            text_fields=("question", "answer"), template="Q: {question}\nA: {answer}"
        ),
    },
    "legal": {"uscode": DataConfig(text_fields=("text",), group_field="section")},
    "finance": {"fed": DataConfig(text_fields=("text",), group_field="title")},
    "code": {"python_functions": DataConfig(text_fields=("code",), group_field="path")},
}
OWNERS = tuple(domain for domain in SOURCES if domain != PUBLIC)


@dataclass(frozen=True)
class Texts:
    """Documents of every domain; no group of records is in two parts."""

    train: Mapping[str, Sequence[str]]
    validation: Mapping[str, Sequence[str]]
    heldout: Mapping[str, Sequence[str]]


def read_texts(data: Path) -> Texts:
    """Read all domains from the folder of data sets.

    Raises:
        DataError: a data set is missing or unreadable.

    """
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}, "heldout": {}}
    for domain, sets in SOURCES.items():
        records = [r for name, config in sets.items() for r in _records(data / name, config)]
        split = split_records(records)
        for part, found in parts.items():
            found[domain] = [record.text for record in getattr(split, part)]
    return Texts(**parts)


def _records(folder: Path, config: DataConfig) -> list[Record]:
    return [record for file in data_files(folder) for record in read_shard(file, config)]


def streams(texts: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Tokens of each domain, one after the other."""
    return {domain: token_stream(tokenizer, documents) for domain, documents in texts.items()}


def evaluation_rows(
    texts: Mapping[str, Sequence[str]], tokenizer: Tokenizer
) -> dict[str, list[Row]]:
    """The first LENGTH tokens of documents spread evenly over each domain."""
    rows = {}
    for domain, documents in texts.items():
        count = min(_EVALUATED, len(documents))
        chosen = [documents[index * len(documents) // count] for index in range(count)]
        rows[domain] = [found[0] for found in tokenizer.rows(chosen, LENGTH, 1)]
    return rows
