"""What fields mean: configuration, detection, records and the held-out split."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from client.data import (
    DataConfig,
    DataError,
    Record,
    describe,
    detect_config,
    detect_layout,
    load_config,
    read_shard,
    split_records,
)

QA = {"question": "Why?", "answer": "Because."}
LAYOUTS = {
    "messages": (
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes? "},
            ],
            "text": "less specific",
        },
        "User: Hi\nAssistant: Yes?",
    ),
    "question": (QA | {"text": "less specific"}, "Q: Why?\nA: Because."),
    "prompt": ({"prompt": "Hi", "response": "Yes?"}, "User: Hi\nAssistant: Yes?"),
    "instruction": (
        {"instruction": "Add", "input": "1 2", "output": "3"},
        "Instruction: Add\nInput: 1 2\nOutput: 3",
    ),
    "no input": ({"instruction": "Sing", "output": "La"}, "Instruction: Sing\nOutput: La"),
    "empty input": (
        {"instruction": "Sing", "input": "", "output": "La"},
        "Instruction: Sing\nOutput: La",
    ),
    "text": ({"text": " Plain. ", "id": 3}, "Plain."),
}


@pytest.mark.parametrize(("row", "text"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_common_layouts_are_detected(write_shard, row, text):
    path = write_shard("a.jsonl", row)
    assert read_shard(path, detect_config(path))[0].text == text


def test_a_text_file_is_detected(write_shard):
    path = write_shard("a.txt", b"Some prose.")
    assert detect_config(path) == DataConfig(text_fields=("text",), template="{text}")


def test_an_unknown_layout_is_refused_with_its_fields(write_shard):
    path = write_shard("a.jsonl", {"body": "x", "id": 1})
    with pytest.raises(DataError, match=r"^a\.jsonl:1: .* got fields \['body', 'id'\]\. Write a"):
        detect_config(path)


UNIT_FIELDS = ["patient_id", "patient", "customer_id", "customer", "author", "user"]
UNIT_FIELDS += ["user_id", "party", "reporter"]


@pytest.mark.parametrize("field", UNIT_FIELDS)
def test_well_known_unit_fields_are_found_and_shown(write_shard, field):
    config = detect_config(write_shard("a.jsonl", QA | {field: "k1"}, QA | {field: 7}))
    assert config.unit_field == field
    assert f"privacy unit: field '{field}'" in describe(config)


def test_other_fields_are_no_unit(write_shard):
    config = detect_config(write_shard("a.jsonl", QA | {"id": "1", "employee": "k1"}))
    assert config.unit_field is None
    assert "privacy unit: each record on its own" in describe(config)


@pytest.mark.parametrize("gap", [{}, {"patient": None}])
def test_a_unit_field_with_gaps_is_not_dropped_silently(write_shard, gap):
    path = write_shard("a.jsonl", QA | {"patient": "k1"}, QA | gap)
    with pytest.raises(DataError, match=r"^a\.jsonl:2: Expected 'patient', the privacy unit"):
        detect_config(path)
    assert detect_layout(path).unit_field is None


def test_a_complete_unit_field_wins_over_one_with_gaps(write_shard):
    path = write_shard("a.jsonl", QA | {"user": "k1", "author": "x"}, QA | {"user": "k2"})
    assert detect_config(path).unit_field == "user"


def test_description_is_one_line():
    config = DataConfig(text_fields=("q", "a"), template="{q}\n{a}", group_field="topic")
    assert describe(config) == (
        r"text from q, a as '{q}\n{a}'; privacy unit: each record on its own; "
        "kept together in splits: records of one 'topic'"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{q} {other}", "in it. List the field in text_fields"),
        ("{q.__class__}", "in it. List the field"),
        ("{q!r}", "in it. List the field"),
        ("{q:>9999999999}", "in it. List the field"),
        ("{}", "in it. List the field"),
        ("{q", "Expected a template with"),
        ("no field at all", "got none of \\['q'\\]"),
    ],
)
def test_a_template_may_only_place_listed_fields(template, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(text_fields=("q",), template=template)


def test_template_keeps_literal_braces_and_braces_in_text(write_shard):
    config = DataConfig(text_fields=("text",), template="{{x}} {text}")
    path = write_shard("a.jsonl", {"text": "{unit} {0}"})
    assert read_shard(path, config)[0].text == "{x} {unit} {0}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text_fields = ["q"]\nunits = "x"', "data.toml: units: there is no such key"),
        ("text_fields = []", "data.toml: text_fields: "),
        ('text_fields = ["q"]\nunit_field = ""', "data.toml: unit_field: "),
        (
            'text_fields = ["q"]\nunit_field = "institution"',
            "unit_field: .*kind of unit",
        ),
        ('text_fields = ["q"]\nunit_field = "record"', "unit_field: .*kind of unit"),
        ('text_fields = ["q"]\ntemplate = "{r}"', r"data.toml: template: .*got \['r'\] in it"),
        ("text_fields = [", "data.toml: Expected a readable TOML file"),
    ],
)
def test_a_bad_data_toml_is_refused_by_key(tmp_path, content, message):
    (tmp_path / "data.toml").write_text(content)
    with pytest.raises(DataError, match=message):
        load_config(tmp_path / "data.toml")


def test_an_absent_data_toml_is_refused(tmp_path):
    with pytest.raises(DataError, match="Expected a readable TOML file"):
        load_config(tmp_path / "data.toml")


def test_without_a_unit_field_each_record_is_its_own_unit(write_shard):
    records = read_shard(write_shard("a.jsonl", QA, QA), DataConfig(text_fields=("question",)))
    assert [record.unit for record in records] == ["a.jsonl:1", "a.jsonl:2"]
    assert records[0].group == records[1].group  # equal texts stay together


def test_units_are_keys_and_numbers_equal_their_digits(write_shard):
    config = DataConfig(text_fields=("text",), unit_field="u")
    rows = [{"text": "x", "u": u} for u in (7, " 7 ", "p7")]
    records = read_shard(write_shard("a.jsonl", *rows), config)
    assert [record.unit for record in records] == ["7", "7", "p7"]
    assert [record.group for record in records] == ["7", "7", "p7"]


@pytest.mark.parametrize("unit", [None, "", "  ", 1.5, True, ["k"], "\ud800"])
def test_a_unit_that_is_no_key_is_refused(write_shard, unit):
    config = DataConfig(text_fields=("text",), unit_field="u")
    path = write_shard("a.jsonl", {"text": "x", "u": "k"}, {"text": "x", "u": unit})
    with pytest.raises(DataError, match=r"^a\.jsonl:2: Expected .* in field 'u', got"):
        read_shard(path, config)


@pytest.mark.parametrize("field", ["unit_field", "group_field"])
def test_a_missing_key_field_is_refused(write_shard, field):
    config = DataConfig(**{"text_fields": ("text",), field: "k"})
    path = write_shard("a.jsonl", {"text": "x", "k": "1"}, {"text": "x"})
    with pytest.raises(DataError, match=r"^a\.jsonl:2: Expected the field 'k', got fields"):
        read_shard(path, config)


def test_an_empty_group_falls_back_to_the_unit(write_shard):
    config = DataConfig(text_fields=("text",), unit_field="u", group_field="g")
    rows = [{"text": "x", "u": "k", "g": g} for g in ("topic", "", None, 0)]
    records = read_shard(write_shard("a.jsonl", *rows), config)
    assert [record.group for record in records] == ["topic", "k", "k", "0"]


def records_of(groups: list[str]) -> list[Record]:
    return [Record(f"text {i}", f"u{i}", g, f"a.jsonl:{i + 1}") for i, g in enumerate(groups)]


@given(st.lists(st.text(max_size=4)), st.lists(st.text(max_size=4)))
def test_split_is_a_partition_disjoint_by_group_and_stable(groups, more):
    split = split_records(records_of(groups), heldout=0.3, validation=0.3)
    parts = (split.train, split.validation, split.heldout)
    assert sorted((r for part in parts for r in part), key=lambda r: r.source) == sorted(
        records_of(groups), key=lambda r: r.source
    )
    sides = [{r.group.casefold() for r in part} for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides))
    later = split_records(records_of(groups + more), heldout=0.3, validation=0.3)
    assert set(split.heldout) <= set(later.heldout)


def test_split_shares_hold_for_many_groups():
    split = split_records(records_of([f"group {n}" for n in range(20_000)]))
    # Four standard deviations of a binomial share of 0.1 over 20,000 groups.
    assert abs(len(split.heldout) / 20_000 - 0.1) < 0.0085
    assert abs(len(split.validation) / 20_000 - 0.1) < 0.0085


def test_split_ignores_case_and_follows_the_salt():
    upper, lower = (records_of([f(f"Group {n}") for n in range(99)]) for f in (str.upper, str))
    numbers = [[r.source for r in split_records(rs).heldout] for rs in (upper, lower)]
    assert numbers[0] == numbers[1]
    assert numbers[0] != [r.source for r in split_records(upper, salt="other").heldout]


def test_split_never_moves_between_versions():
    split = split_records(records_of([f"group {n}" for n in range(12)]))
    assert [r.group for r in split.heldout] == ["group 2", "group 7", "group 9"]
    assert [r.group for r in split.validation] == []


@pytest.mark.parametrize(
    ("heldout", "validation"), [(-0.1, 0.1), (0.5, 0.5), (0.1, -0.1), (float("nan"), 0.1)]
)
def test_shares_that_leave_nothing_to_train_on_are_refused(heldout, validation):
    with pytest.raises(DataError, match="Expected shares >= 0 that leave some to train on"):
        split_records([], heldout=heldout, validation=validation)


def test_medquad_example_config_reads_all_nine_institutions(shared_dir: Path):
    config = load_config(Path(__file__).parents[2] / "examples" / "medquad.data.toml")
    folder = shared_dir / "data" / "medquad"
    records = read_shard(folder, config)
    assert len(records) == 14_196
    assert len({record.source.split(":")[0] for record in records}) == 9
    assert all(record.text.startswith("Q: ") and "\nA: " in record.text for record in records)
    split = split_records(records)
    held = {record.group.casefold() for record in split.heldout}
    assert not held & {record.group.casefold() for record in split.train + split.validation}
    assert 0.07 < len(split.heldout) / len(records) < 0.13
