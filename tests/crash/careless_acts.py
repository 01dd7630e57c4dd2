"""Acts that say too early that something is done: what the model of a disk must notice."""

import os
import sqlite3
from pathlib import Path

from tests.crash.actors import acknowledge


def write_without_flush(folder: Path) -> None:
    """Say that a file is written, then flush it, rename it, and flush its name."""
    file = os.open(folder / "a.part", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(file, b"12345678")
    acknowledge("written")
    os.fsync(file)
    (folder / "a.part").rename(folder / "a")
    acknowledge("renamed")
    place = os.open(folder, os.O_RDONLY)
    os.fsync(place)
    acknowledge("flushed")


def insert_rows(folder: Path, synchronous: str) -> None:
    """Insert five rows, each in a transaction of its own."""
    rows = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
    rows.execute("PRAGMA journal_mode = WAL")
    rows.execute(f"PRAGMA synchronous = {synchronous}")
    rows.execute("CREATE TABLE t (a)")
    for number in range(5):
        rows.execute("INSERT INTO t VALUES (1)")
        acknowledge(str(number))
    os._exit(0)  # closing would write the log back


CARELESS = {
    "write-without-flush": write_without_flush,
    "sqlite-FULL": lambda folder: insert_rows(folder, "FULL"),
    "sqlite-NORMAL": lambda folder: insert_rows(folder, "NORMAL"),
}
