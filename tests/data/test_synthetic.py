"""The synthetic federation: repeatable, of the stated size, learnable, secrets in their place."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import pytest

from arion.institutions import find_institutions, read_public
from arion.synthetic import SyntheticPaths, write_synthetic
from arion.synthetic_grammar import (
    GENERAL,
    INSTITUTIONS,
    common,
    private_grammar,
    public_grammar,
    sentence,
)
from client.data import Record, read_shard

UNITS = 60


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    out = tmp_path_factory.mktemp("synthetic")
    return write_synthetic(out, units_per_institution=UNITS, public_documents=400)


@pytest.fixture(scope="module")
def shards(paths: SyntheticPaths) -> dict[str, tuple[Record, ...]]:
    found = find_institutions(paths.private_dir)
    return {i.name: read_shard(i.path, i.config) for i in found}


def files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_the_seed_fixes_every_byte(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic(tmp_path / name, seed=seed, units_per_institution=12, public_documents=20)
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a if not name.endswith("data.toml"))


def test_default_sizes(tmp_path):
    paths = write_synthetic(tmp_path)
    for institution in find_institutions(paths.private_dir):
        assert 1_500 <= len(read_shard(institution.path, institution.config)) <= 2_500
    public = read_public([paths.public_dir])
    assert len(public) == 3_000
    assert 1.5e6 <= sum(len(document) for document in public) <= 2.5e6


def test_units_and_records_are_of_the_stated_size(paths, shards):
    assert [i.config.unit_field for i in find_institutions(paths.private_dir)] == [
        "customer",
        "party",
        "patient",
        "reporter",
    ]
    for records in shards.values():
        counts = Counter(record.unit for record in records)
        assert len(counts) == UNITS
        assert (min(counts.values()), max(counts.values())) == (1, 8)
        assert all(40 <= len(record.text.split()) <= 120 for record in records)
        assert len({record.text for record in records}) == len(records)


def test_secrets_occur_in_their_units_records_and_nowhere_else(paths, shards):
    secrets = json.loads(paths.secrets_path.read_text())
    assert len(secrets) == 40
    for secret in secrets:
        planted = secret["prompt"] + secret["secret"]
        holders = [
            (name, record.unit)
            for name, records in shards.items()
            for record in records
            if planted in record.text
        ]
        assert holders == [(secret["institution"], secret["unit"])] * len(secret["records"])
        assert holders


def test_secrets_lie_outside_every_shard(paths):
    assert paths.private_dir not in paths.secrets_path.parents
    assert paths.public_dir not in paths.secrets_path.parents
    assert {len(s["records"]) for s in json.loads(paths.secrets_path.read_text())} >= {1, 2}


def test_public_text_holds_no_name_and_no_secret(paths):
    public = "\n".join(read_public([paths.public_dir]))
    assert "access code of" not in public
    assert not [last for last in common()["last"] if last in public]


def test_a_units_facts_recur_over_its_records(shards):
    grammar = private_grammar("hospital")
    drugs = {drug: topic for topic, t in grammar.topics.items() for drug in t["drug"]}
    of_unit: dict[str, set[str]] = defaultdict(set)
    for record in shards["hospital"]:
        of_unit[record.unit] |= {drug for drug in drugs if f"{drug} " in record.text}
    assert max(len(found) for found in of_unit.values()) == 1
    assert len(set.union(*of_unit.values())) >= 10


def unigram_bits(model: Counter[str], words: list[str]) -> float:
    total, vocabulary = sum(model.values()), 5_000
    return -sum(math.log2((model[w] + 1) / (total + vocabulary)) for w in words) / len(words)


def test_institutions_differ_in_words(shards):
    words = {name: " ".join(r.text for r in rs).split() for name, rs in shards.items()}
    models = {name: Counter(w[: len(w) // 2]) for name, w in words.items()}
    for name, own in words.items():
        second_half = own[len(own) // 2 :]
        bits = {other: unigram_bits(model, second_half) for other, model in models.items()}
        assert min(bits, key=bits.__getitem__) == name
        assert all(value > bits[name] + 1 for other, value in bits.items() if other != name)


def test_there_are_some_hundred_patterns_and_each_can_be_filled():
    filled = 0
    for name in INSTITUTIONS:
        grammar = private_grammar(name)
        for topic in grammar.topics:
            facts = grammar.unit_facts("Ada Example", Random(topic)) | {"topic": topic}
            for pattern in [p for section in grammar.sections.values() for p in section]:
                text = sentence(pattern, grammar, facts, Random(0))
                assert "{" not in text
                assert not text[0].islower()
        assert {s for kind in grammar.kinds.values() for s in kind} <= grammar.sections.keys()
        filled += sum(len(section) for section in grammar.sections.values())
    for name in (*INSTITUTIONS, GENERAL):
        grammar = public_grammar(name)
        for topic in grammar.topics:
            for pattern in grammar.public["fact"]:
                assert "{" not in sentence(pattern, grammar, {"topic": topic}, Random(0))
        filled += len(grammar.public["fact"])
    assert filled >= 300


@pytest.mark.parametrize(("units", "documents"), [(0, 1), (577, 1), (1, 0)])
def test_sizes_out_of_range_are_refused(tmp_path, units, documents):
    with pytest.raises(ValueError, match="Expected 1 to 576 units per institution"):
        write_synthetic(tmp_path, units_per_institution=units, public_documents=documents)
