"""Backups: whole while the service goes on, keys sealed, restored whole or not at all."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from arion.cli import app
from coordinator.attempts import Attempt, Phase
from coordinator.errors import RunError
from coordinator.service import backup, schema
from coordinator.service.archive import BackupError, Contents, Manifest, Source, write_archive
from coordinator.service.backup import back_up
from coordinator.service.database import MEMBERS, transaction
from coordinator.service.home import ServiceHome
from coordinator.service.restore import restore
from coordinator.store import RunStore
from models.optimiser import OptimiserState
from privacy.identity import Signed
from tests.service.postgresql import Server, on_both
from tests.service.test_schema import at_first_schema

PASSPHRASE = b"a long enough passphrase"
PAYLOAD = bytes(range(256)) * 5_000


@pytest.fixture
def filled(service_home: ServiceHome) -> ServiceHome:
    """A home with an invitation, a message whose payload waits, and a run."""
    service_home.registry.invite("north")
    service_home.mailbox.post("r", 1, "train.upload", ("UploadRequest", b"body", PAYLOAD))
    run = service_home.path / "runs" / "first"
    (run / "ledger").mkdir(parents=True)
    (run / "identity.key").write_bytes((service_home.path / "identity.key").read_bytes())
    (run / "ledger" / "entries.jsonl").write_bytes(b"one\n")
    RunStore(run).close()
    return service_home


def at(folder: Path) -> dict[str, str]:
    """Digest of every file but databases, by path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".sqlite" not in path.name
    }


def rewritten(
    source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes]]
) -> Path:
    """A backup whose entries were changed by someone without the passphrase."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            name, data = change(member.name, file.read())
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    return target


def test_a_restored_home_is_the_one_that_was_saved(filled: ServiceHome, tmp_path: Path) -> None:
    file, home = tmp_path / "b.tar", tmp_path / "again"
    back_up(filled, file, PASSPHRASE)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not (filled.path / "backup.part").exists()
    result = restore(file, home, PASSPHRASE, None)
    assert result.dropped == 1
    found = at(home)
    del found["epochs"]  # it goes on where no epoch after the backup was: test_succession.py
    assert found == at(filled.path)
    again = ServiceHome.open(home)
    assert again.key.public_key == filled.key.public_key
    assert again.authority.pem == filled.authority.pem
    (waiting,) = again.mailbox.waiting(1)
    assert waiting == filled.mailbox.waiting(1)[0]
    assert again.mailbox.blobs.read(waiting.payload_digest) == PAYLOAD
    again.close()
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.rglob("*"))


@on_both
def test_rows_move_between_databases(
    filled: ServiceHome, tmp_path: Path, postgresql: Server
) -> None:
    """SQLite or PostgreSQL into PostgreSQL; numbers of members go on after the largest."""
    file, home, url = tmp_path / "b.tar", tmp_path / "again", postgresql.new_database()
    with transaction(filled.engine) as connection:
        member = {"role": "node", "status": "active", "identity_key": b"k", "certificate": b""}
        for number in (1, 5):
            request = {"csr": b"c", "csr_digest": b"%d" % number}
            connection.execute(
                MEMBERS.insert().values(address=number, name=f"n{number}", **member, **request)
            )
    back_up(filled, file, PASSPHRASE)
    restore(file, home, PASSPHRASE, url)
    assert not list(home.glob("service.sqlite*"))
    again = ServiceHome.open(home)
    assert again.mailbox.waiting(1) == filled.mailbox.waiting(1)
    assert again.registry.members() == filled.registry.members()
    with transaction(again.engine) as connection:
        request = {"csr": b"c", "csr_digest": b"new"}
        new = connection.execute(MEMBERS.insert().values(name="new", **member, **request))
        assert new.inserted_primary_key == (6,)
    again.close()
    with pytest.raises(BackupError, match="empty database"):
        restore(file, tmp_path / "other", PASSPHRASE, url)
    assert not (tmp_path / "other").exists()


def test_a_backup_holds_no_private_key_in_the_clear(filled: ServiceHome, tmp_path: Path) -> None:
    file = tmp_path / "b.tar"
    back_up(filled, file, PASSPHRASE)
    raw = file.read_bytes()
    assert (filled.path / "identity.key").read_bytes() not in raw
    pem = (filled.path / "ca.key").read_bytes().splitlines()
    body = [line for line in pem if line and not line.startswith(b"-----")]
    assert body
    assert all(line not in raw for line in body)
    with tarfile.open(file) as tar:
        assert not [name for name in tar.getnames() if name.endswith(".key")]
    with pytest.raises(BackupError, match="passphrase"):
        restore(file, tmp_path / "again", b"another passphrase", None)
    assert not (tmp_path / "again").exists()


def test_what_was_altered_is_not_restored(filled: ServiceHome, tmp_path: Path) -> None:
    """Every kind of file; another name; one left out; the manifest; half of the file."""
    file = tmp_path / "b.tar"
    back_up(filled, file, PASSPHRASE)
    with tarfile.open(file) as tar:
        names = tar.getnames()
    cases = {
        **{name: (lambda at, data, name=name: (at, data + b"x" if at == name else data))
           for name in names if "sealed" not in name},
        "traversal": lambda at, data: (at.replace("home/", "home/../../"), data),
        "absolute": lambda at, data: (at.replace("home/", "/home/"), data),
        "renamed": lambda at, data: (at.replace("ca.pem", "cb.pem"), data),
    }  # fmt: skip
    for number, change in enumerate(cases.values()):
        other = rewritten(file, tmp_path / f"{number}.tar", change)
        with pytest.raises(BackupError):
            restore(other, tmp_path / "again", PASSPHRASE, None)
    short = tmp_path / "short.tar"
    for size in (0, 512, file.stat().st_size // 2):
        short.write_bytes(file.read_bytes()[:size])
        with pytest.raises(BackupError):
            restore(short, tmp_path / "again", PASSPHRASE, None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["service"]


def test_a_restoration_that_fails_leaves_nothing(
    filled: ServiceHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, home = tmp_path / "b.tar", tmp_path / "again"
    back_up(filled, file, PASSPHRASE)

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("coordinator.service.restore._prepare", fails)
        with pytest.raises(OSError, match="full"):
            restore(file, home, PASSPHRASE, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "service"]
    home.mkdir()
    (home / "note").write_text("mine")
    with pytest.raises(BackupError, match="holds something"):
        restore(file, home, PASSPHRASE, None)
    assert (home / "note").read_text() == "mine"


def test_a_backup_is_of_one_instant_while_all_goes_on(filled: ServiceHome, tmp_path: Path) -> None:
    """A run writes its state, its rounds and its ledger in order; messages come and are cleared."""
    run, stop = filled.path / "runs" / "first", threading.Event()
    store_ready = threading.Event()

    def go_on() -> None:
        store, number = RunStore(run), 0
        while not stop.is_set():
            number += 1
            (run / "states" / f"{number:06d}.part").write_bytes(b"s" * 1000)
            (run / "states" / f"{number:06d}.part").rename(run / "states" / f"{number:06d}")
            (run / "states" / f"{number - 2:06d}").unlink(missing_ok=True)
            store.save(Attempt(number, 1, Phase.APPLIED, Signed(b"", b"")))
            with (run / "ledger" / "entries.jsonl").open("ab") as ledger:
                ledger.write(b"%d\n" % number)
            filled.mailbox.clear("busy")
            filled.mailbox.post("busy", 2, "train.upload", ("UploadRequest", b"", b"%d" % number))
            store_ready.set()
            stop.wait(0.05)
        store.close()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        assert store_ready.wait(20)
        for number in range(4):
            back_up(filled, tmp_path / f"{number}.tar", PASSPHRASE)
    finally:
        stop.set()
        thread.join(20)
    for number in range(4):
        home = tmp_path / f"again{number}"
        restore(tmp_path / f"{number}.tar", home, PASSPHRASE, None)
        store = RunStore(home / "runs" / "first")
        last = store.last_attempt()
        store.close()
        assert last is not None
        lines = (home / "runs" / "first" / "ledger" / "entries.jsonl").read_bytes().split()
        assert (home / "runs" / "first" / "states" / f"{last.round:06d}").exists()
        assert int(lines[-1]) in (last.round, last.round - 1)
        opened = ServiceHome.open(home)
        for post in opened.mailbox.waiting(2):
            assert opened.mailbox.blobs.read(post.payload_digest)
        opened.close()


def test_a_state_keeps_its_bytes_under_a_second_name(tmp_path: Path) -> None:
    """As a backup gives it, while the run goes on to rounds that delete it."""
    store, start = RunStore(tmp_path / "run"), OptimiserState.start(torch.zeros(300))
    kept: dict[Path, bytes] = {}
    for step in range(5):
        store.save_state(replace(start, step=step, first_D=torch.full((300,), float(step))))
        (newest,) = tmp_path.glob(f"run/states/*{step}.safetensors")
        second = tmp_path / f"second-{step}"
        second.hardlink_to(newest)
        kept[second] = newest.read_bytes()
    assert all(path.read_bytes() == data for path, data in kept.items())
    store.close()


def test_a_run_that_never_pauses_and_a_damaged_payload(
    filled: ServiceHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_TRIES", 3)
    monkeypatch.setattr(backup, "_WAIT_S", 0.0)
    with monkeypatch.context() as patch:
        states = iter(range(100))
        patch.setattr(backup, "_state", lambda group: {group: (next(states), 0, 0)})
        with pytest.raises(BackupError, match="without a pause"):
            back_up(filled, tmp_path / "b.tar", PASSPHRASE)
    (blob,) = [path for path in (filled.path / "blobs").iterdir() if path.is_file()]
    blob.write_bytes(b"damaged")
    with pytest.raises(BackupError, match="damaged"):
        back_up(filled, tmp_path / "b.tar", PASSPHRASE)
    blob.unlink()
    with pytest.raises(BackupError, match="missing"):
        back_up(filled, tmp_path / "b.tar", PASSPHRASE)
    assert [path.name for path in tmp_path.iterdir()] == ["service"]


def test_a_backup_of_a_newer_program_is_refused(
    filled: ServiceHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate = schema.migrate

    def newer(engine: Engine) -> None:
        migrate(engine)
        with transaction(engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrate", newer)
        back_up(filled, tmp_path / "b.tar", PASSPHRASE)
    with pytest.raises(RunError, match="newer"):
        restore(tmp_path / "b.tar", tmp_path / "again", PASSPHRASE, None)
    assert not (tmp_path / "again").exists()


def test_a_backup_of_an_older_program_is_brought_up(
    service_home: ServiceHome, tmp_path: Path
) -> None:
    """What a coordinator of the first schema would have written."""
    old = tmp_path / "old"
    old.mkdir()
    at_first_schema(old).dispose()
    (file := old / "service.sqlite").with_suffix(".sqlite-wal").unlink(missing_ok=True)
    sources = {"service.sqlite": file, "ca.pem": service_home.path / "ca.pem"}
    secrets = ("ca.key", "identity.key", "service.json")
    contents = Contents(
        {name: Source(path, path.stat().st_size) for name, path in sources.items()},
        {name: (service_home.path / name).read_bytes() for name in secrets},
    )
    manifest = Manifest(federation="f", made="2026-11-26T00:00:00Z")
    write_archive(tmp_path / "b.tar", manifest, contents, PASSPHRASE)
    restore(tmp_path / "b.tar", tmp_path / "again", PASSPHRASE, None)
    again = ServiceHome.open(tmp_path / "again")
    assert again.registry.members() == []
    again.close()


def test_the_commands(filled: ServiceHome, tmp_path: Path) -> None:
    words, file, home = tmp_path / "words", tmp_path / "b.tar", tmp_path / "again"
    words.write_bytes(PASSPHRASE + b"\n")
    options = ["--passphrase-file", str(words)]
    run = CliRunner().invoke
    saved = run(app, ["coordinator", "backup", str(filled.path), str(file), *options])
    assert saved.exit_code == 0, saved.output
    again = run(app, ["coordinator", "backup", str(filled.path), str(file), *options])
    assert again.exit_code == 2
    assert "new file" in again.stderr
    restored = run(app, ["coordinator", "restore", str(file), str(home), *options])
    assert restored.exit_code == 0, restored.output
    assert "1 open invitations" in restored.output
    assert "Revoke again" in restored.output
    words.write_bytes(b"short")
    refused = run(app, ["coordinator", "backup", str(filled.path), str(tmp_path / "c"), *options])
    assert refused.exit_code == 2
    assert "12 bytes" in refused.stderr
