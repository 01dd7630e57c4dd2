"""How rows are read, and that whatever cannot be read whole is refused with its place."""

import gzip
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from client.data import DataConfig, DataError, read_shard
from client.shards import data_files, iter_rows

TEXT = DataConfig(text_fields=("text",))
GOOD = {"text": "a good line"}


def texts(path: Path) -> list[str]:
    return [record.text for record in read_shard(path, TEXT)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "A.JSONL"])
def test_json_lines_are_read_with_their_line_numbers(write_shard, name):
    path = write_shard(name, b'\xef\xbb\xbf{"text": "one"}', b"", b'{"text": "\xed\x95\x9c"}\r')
    rows = list(iter_rows(path))
    assert [row.fields["text"] for row in rows] == ["one", "한"]
    assert [row.source for row in rows] == [f"{name}:1", f"{name}:3"]


def test_parquet_rows_are_numbered_from_one(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"], "n": [1, 2]}), path)
    assert [(r.source, r.fields) for r in iter_rows(path)] == [
        ("a.parquet:1", {"text": "one", "n": 1}),
        ("a.parquet:2", {"text": "two", "n": 2}),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md"])
def test_short_paragraphs_merge_into_one_record(write_shard, name):
    path = write_shard(name, b"", b"one", b"still one", b"", b" ", b"two")
    assert [(r.source, r.fields["text"]) for r in iter_rows(path)] == [
        (f"{name}:2", "one\nstill one\n\ntwo")
    ]


def test_paragraphs_stop_merging_at_two_thousand_characters(write_shard):
    path = write_shard("a.txt", b"a" * 1200, b"", b"b" * 700, b"", b"c" * 700)
    assert [len(text) for text in texts(path)] == [1200 + 2 + 700, 700]


def test_a_text_without_blank_lines_is_cut_at_line_ends(write_shard):
    lines = [f"{n:03d} {'x' * 96}".encode() for n in range(100)]
    records = read_shard(write_shard("log.txt", *lines), TEXT)
    assert max(len(record.text) for record in records) <= 2000
    assert "\n".join(record.text for record in records).encode() == b"\n".join(lines)
    assert records[1].source == "log.txt:20"


def test_a_folder_is_read_in_sorted_order_without_its_notes(write_shard, tmp_path):
    write_shard("b.jsonl", {"text": "second"})
    write_shard("c/a.jsonl", {"text": "third"})
    write_shard("a.jsonl", {"text": "first"})
    for note in ("DATA.md", "README.txt", "LICENSE", ".hidden.jsonl", "data.toml", ".git/x.jsonl"):
        write_shard(note, b"not data")
    records = read_shard(tmp_path, TEXT)
    assert [r.source for r in records] == ["a.jsonl:1", "b.jsonl:1", "c/a.jsonl:1"]


BROKEN = {
    "invalid JSON": (b'{"text": "secret', "Expected one JSON object per line, got invalid JSON"),
    "JSON array": (b'["secret"]', "Expected a JSON object, got list"),
    "deep nesting": (b"[" * 100_000, "invalid JSON"),
    "huge number": (b'{"n": ' + b"9" * 5000 + b"}", "invalid JSON"),
    "invalid UTF-8": (b'{"text": "secret \xff"}', "Expected UTF-8, got an invalid byte at"),
    "NUL byte": (b'{"text": "secret \0"}', r"got binary data \(a NUL byte\)"),
    "escaped NUL": (b'{"text": "secret \\u0000"}', "got a NUL or a lone surrogate"),
    "lone surrogate": (b'{"text": "secret \\ud800"}', "got a NUL or a lone surrogate"),
    "missing field": (b'{"txt": "secret"}', r"Expected the field 'text', got fields \['txt'\]"),
    "null": (b'{"text": null}', "Expected text or a list .* in field 'text', got null"),
    "number": (b'{"text": 7}', "Expected text or a list .* in field 'text', got int"),
    "not messages": (b'{"text": ["secret"]}', "Expected messages of the form .*, got str"),
    "blank": (b'{"text": "  "}', "Expected text, got only empty fields"),
}


@pytest.mark.parametrize(("line", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_one_broken_line_refuses_the_shard_and_names_the_place(
    write_shard, tmp_path, line, message
):
    write_shard("a.jsonl", GOOD)
    write_shard("b.jsonl", GOOD, line, GOOD)
    with pytest.raises(DataError, match=rf"^b\.jsonl:2: .*{message}") as error:
        read_shard(tmp_path, TEXT)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_truncated_gzip_is_refused(tmp_path, kept):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(1000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"^a\.jsonl\.gz:\d+: .* cut off or damaged"):
        read_shard(tmp_path, TEXT)


def test_a_file_that_is_no_gzip_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(DataError, match=r"^a\.jsonl\.gz:1: Expected a whole gzip file"):
        read_shard(tmp_path, TEXT)


@pytest.mark.parametrize("name", ["long.jsonl", "long.jsonl.gz", "long.txt"])
def test_a_line_of_50_mb_is_refused_without_holding_it(tmp_path, name):
    opener = gzip.GzipFile if name.endswith(".gz") else open
    with opener(tmp_path / name, "wb") as handle:
        for _ in range(50):
            handle.write(b"a" * 2**20)
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"^{name}:1: Expected lines of at most 8388608 bytes"):
        read_shard(tmp_path, TEXT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_the_line_limit_is_exact(write_shard):
    path = write_shard("a.jsonl", GOOD)
    size = path.stat().st_size
    assert len(read_shard(path, TEXT, max_line_bytes=size)) == 1
    with pytest.raises(DataError, match=r"^a\.jsonl:1: Expected lines of at most"):
        read_shard(path, TEXT, max_line_bytes=size - 1)


def test_a_long_parquet_value_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["short", "x" * 101]}), path)
    with pytest.raises(DataError, match=r"^a\.parquet:2: Expected values of at most 100 bytes"):
        read_shard(path, TEXT, max_line_bytes=100)


def test_a_damaged_parquet_file_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"^a\.parquet:1: Expected a whole Parquet file"):
        read_shard(path, TEXT)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_an_empty_file_is_refused_even_beside_a_good_one(write_shard, tmp_path, name):
    write_shard("0.jsonl", GOOD)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"^{name}:1: Expected records, got an empty file"):
        read_shard(tmp_path, TEXT)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing here yet")
    with pytest.raises(DataError, match="Expected data files, got an empty folder"):
        read_shard(tmp_path, TEXT)


@pytest.mark.parametrize("name", ["table.csv", "notes.docx", "images.tar.gz", "noext"])
def test_an_unknown_kind_of_file_is_refused(write_shard, tmp_path, name):
    write_shard("a.jsonl", GOOD)
    write_shard(name, b"x")
    with pytest.raises(DataError, match=rf"^{name}: Expected one of \.jsonl, .*got the suffix"):
        read_shard(tmp_path, TEXT)


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="Expected a data file or folder, got nothing there"):
        read_shard(tmp_path / "absent", TEXT)


def test_a_pipe_is_refused_instead_of_waited_for(write_shard, tmp_path):
    write_shard("a.jsonl", GOOD)
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"^b\.jsonl: Expected a regular file, got a pipe"):
        read_shard(tmp_path, TEXT)


@pytest.mark.parametrize("target", ["outside.jsonl", "outside", "absent.jsonl"])
def test_a_link_that_leaves_the_folder_is_refused(write_shard, tmp_path, target):
    write_shard("outside.jsonl", GOOD)
    write_shard("outside/a.jsonl", GOOD)
    folder = write_shard("shard/a.jsonl", GOOD).parent
    (folder / "link.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r"^link\.jsonl: .* got a symbolic link that leaves it"):
        read_shard(folder, TEXT)


def test_a_link_inside_the_folder_does_not_double_records(write_shard, tmp_path):
    path = write_shard("b.jsonl", GOOD)
    (tmp_path / "a.jsonl").symlink_to(path)
    assert len(data_files(tmp_path)) == 1
    assert texts(tmp_path) == ["a good line"]
