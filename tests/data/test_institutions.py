"""Institutions found in a folder, their names, and public text."""

from pathlib import Path

import pytest

from arion.institutions import find_institutions, read_public
from client.data import DataConfig, DataError, load_config

ROW = {"text": "some text", "patient": "k1"}
TEXT = DataConfig(text_fields=("text",))


def test_subfolders_and_files_become_institutions(write_shard, tmp_path):
    write_shard("St. Alder Hospital/notes.jsonl", ROW)
    write_shard("NIDDK.jsonl.gz", {"text": "x"})
    for note in ("DATA.md", "README.md", ".hidden.jsonl", ".cache/a.jsonl"):
        write_shard(note, b"no data")
    found = find_institutions(tmp_path, None)
    assert [(i.name, i.label, i.path.name) for i in found] == [
        ("niddk", "NIDDK", "NIDDK.jsonl.gz"),
        ("st-alder-hospital", "St. Alder Hospital", "St. Alder Hospital"),
    ]
    assert [i.config.unit_field for i in found] == [None, "patient"]


def test_the_nearest_config_wins(write_shard, tmp_path):
    write_shard("a/x.jsonl", ROW | {"u": "1"})
    write_shard("b/x.jsonl", ROW)
    (tmp_path / "data.toml").write_text('text_fields = ["patient"]')
    (tmp_path / "a" / "data.toml").write_text('text_fields = ["text"]\nunit_field = "u"')
    a, b = find_institutions(tmp_path)
    assert (a.config.unit_field, b.config.text_fields) == ("u", ("patient",))
    given = DataConfig(text_fields=("text",))
    assert [i.config for i in find_institutions(tmp_path, given)] == [given, given]


def test_names_that_collide_are_refused(write_shard, tmp_path):
    write_shard("north_clinic.jsonl", ROW)
    write_shard("North Clinic/a.jsonl", ROW)
    with pytest.raises(DataError, match="got 'north-clinic', also the name of North Clinic"):
        find_institutions(tmp_path)


def test_long_names_are_cut_and_empty_ones_refused(write_shard, tmp_path):
    write_shard(f"{'x' * 62}-{'y' * 20}.jsonl", ROW)
    assert find_institutions(tmp_path)[0].name == "x" * 62
    write_shard("한국.jsonl", ROW)
    with pytest.raises(DataError, match="Expected a name with letters a-z or digits"):
        find_institutions(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("table.csv", "Expected one of"), ("empty/README.md", "Expected data files")],
)
def test_an_entry_that_is_no_data_is_refused(write_shard, tmp_path, name, message):
    write_shard("a.jsonl", ROW)
    write_shard(name, b"x")
    with pytest.raises(DataError, match=message):
        find_institutions(tmp_path, DataConfig(text_fields=("text",)))


@pytest.mark.parametrize(("config", "bad"), [(TEXT, b'{"text": 5}'), (None, b"no JSON")])
def test_a_bad_line_is_said_to_be_in_whose_folder_it_is(write_shard, tmp_path, config, bad):
    """Where it is read for detection, or once it is known what the fields mean."""
    write_shard("east/notes.jsonl", ROW)
    write_shard("west/notes.jsonl", b'{"text": "a note"}\n' + bad)
    with pytest.raises(DataError, match=r"^west: notes\.jsonl:2: Expected "):
        [institution.records() for institution in find_institutions(tmp_path, config)]


def test_a_bad_line_of_a_file_names_it_once(write_shard, tmp_path):
    write_shard("west.jsonl", {"text": 5})
    with pytest.raises(DataError, match=r"^west\.jsonl:1: Expected "):
        find_institutions(tmp_path, TEXT)[0].records()


def test_a_link_out_of_the_folder_is_refused(write_shard, tmp_path):
    target = write_shard("elsewhere/a.jsonl", ROW).parent
    inside = write_shard("here/b.jsonl", ROW).parent
    (inside / "linked").symlink_to(target)
    with pytest.raises(DataError, match=r"^linked: .* symbolic link that leaves it"):
        find_institutions(inside)


def test_no_institution_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match="Expected institutions, got an empty folder"):
        find_institutions(tmp_path)
    with pytest.raises(DataError, match="Expected a folder of institutions, got none"):
        find_institutions(tmp_path / "absent")


def test_medquad_is_nine_institutions(shared_dir: Path):
    config = load_config(Path(__file__).parents[2] / "examples" / "medquad.data.toml")
    found = find_institutions(shared_dir / "data" / "medquad", config)
    assert " ".join(i.name for i in found) == (
        "cancergov cdc gard ghr mplushealthtopics nhlbi niddk nihseniorhealth ninds"
    )


def test_public_text_mixes_paths_and_layouts(write_shard, tmp_path):
    write_shard(
        "web/b.jsonl", {"question": "Why?", "answer": "So."}, {"question": "", "answer": "x"}
    )
    write_shard("web/a.txt", b"Prose.")
    write_shard("own/a.jsonl", {"body": "Own field.", "author": "k1"})
    (tmp_path / "own" / "data.toml").write_text('text_fields = ["body"]')
    write_shard("gap.jsonl", {"text": "one", "author": "k1"}, {"text": "two"})
    paths = [tmp_path / name for name in ("web", "own", "gap.jsonl")]
    assert read_public(paths) == ("Prose.", "Q: Why?\nA: So.", "A: x", "Own field.", "one", "two")


def test_public_text_needs_a_path():
    with pytest.raises(DataError, match="Expected paths of public text, got none"):
        read_public([])
