"""Ledgers in one file: whole, repeatable, and never a way out of the folder."""

import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arion.privacy_cli import privacy_app
from privacy.ledger.bundle import export_bundle, opened_bundle
from privacy.ledger.entries import LedgerError
from privacy.ledger.pins import Pins, pins_bytes
from privacy.ledger.verify import verify_tree


def ledger(*arguments: str | Path) -> Result:
    return CliRunner().invoke(privacy_app, ["ledger", *(str(a) for a in arguments)])


@pytest.fixture
def run_dir(tmp_path: Path, node_dir: Path, hub_dir: Path, pins: Pins) -> Path:
    folder = tmp_path / "a run"
    folder.mkdir()
    for place in (node_dir, hub_dir):
        place.rename(folder / place.name)
    (folder / "pins.json").write_bytes(pins_bytes(pins))
    (folder / "identity.key").write_text("secret")
    return folder


@pytest.fixture
def bundle(run_dir: Path, tmp_path: Path) -> Path:
    export_bundle(run_dir, tmp_path / "ledgers.zip")
    return tmp_path / "ledgers.zip"


def test_a_bundle_verifies_as_its_folder_does(run_dir: Path, bundle: Path, pins: Pins) -> None:
    with opened_bundle(bundle) as folder:
        found = verify_tree(folder, pins)
    expected = verify_tree(run_dir, pins)
    assert [(r.name, r.roots, r.is_ok) for r in found] == [
        (r.name, r.roots, True) for r in expected
    ]
    result = ledger("verify", bundle)
    assert result.exit_code == 0, result.output
    assert "2 ledgers checked: all hold." in result.output


def test_no_key_is_in_it_and_equal_ledgers_give_equal_bytes(run_dir: Path, bundle: Path) -> None:
    assert not any("key" in name for name in zipfile.ZipFile(bundle).namelist())
    before = bundle.read_bytes()
    assert ledger("export", run_dir, "--out", bundle).exit_code == 0
    assert bundle.read_bytes() == before


def test_an_altered_bundle_does_not_hold(bundle: Path, tmp_path: Path) -> None:
    altered = tmp_path / "altered.zip"
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(altered, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'"notes"', b'"other"'))
    result = ledger("verify", altered)
    assert result.exit_code == 1
    assert "BAD  hospital-a" in result.output


def test_half_a_last_line_is_left_out(run_dir: Path, tmp_path: Path, pins: Pins) -> None:
    with (run_dir / "hospital-a" / "entries.jsonl").open("ab") as file:
        file.write(b'{"index": 6, "ki')
    export_bundle(run_dir, tmp_path / "torn.zip")
    with opened_bundle(tmp_path / "torn.zip") as folder:
        assert all(report.is_ok for report in verify_tree(folder, pins))


@pytest.mark.parametrize(
    "name",
    [
        "../entries.jsonl",
        "/etc/entries.jsonl",
        "a/../entries.jsonl",
        "a/notes.txt",
        "a/more-entries.jsonl",
        ".x/heads.jsonl",
        "a\\entries.jsonl",
        "b/pins.json",
    ],
)
def test_foul_names_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    foul = tmp_path / "foul.zip"
    with zipfile.ZipFile(foul, "w") as bundle:
        bundle.writestr("a/entries.jsonl", "")
        bundle.writestr(name, "x")
    with pytest.raises(LedgerError, match="names of ledger files"), opened_bundle(foul):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["foul.zip"]


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    foul = tmp_path / "foul.zip"
    with zipfile.ZipFile(foul, "w") as bundle:
        bundle.writestr("a/entries.jsonl", "")
        with pytest.warns(UserWarning, match="Duplicate"):
            bundle.writestr("a/entries.jsonl", "x")
    with pytest.raises(LedgerError, match="each once"), opened_bundle(foul):
        pass


def test_what_is_no_bundle_is_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "half.zip").write_bytes(bundle.read_bytes()[:-40])
    (tmp_path / "text.zip").write_text("not a zip")
    for path in (tmp_path / "half.zip", tmp_path / "text.zip"):
        result = ledger("verify", path)
        assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert ledger("export", tmp_path / "nowhere", "--out", tmp_path / "x.zip").exit_code == 2
