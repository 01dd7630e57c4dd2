"""Key files in tmpfs: a folder per home, gone with it."""

import shutil
from pathlib import Path

import pytest

import client.epoch
from client.epoch import EpochKeeper
from privacy.identity import IdentityKey
from privacy.secagg.keys import RosterError
from tests.secagg.conftest import MemoryStore

ONE, OTHER = "01" * 32, "02" * 32  # coordinators


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of tmpfs; returns where this user's folders are."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(client.epoch, "_TMPFS", tmp_path / "shm")
    EpochKeeper(
        tmp_path, "any", IdentityKey.generate(), MemoryStore(), hybrid=False, coordinator=ONE
    )
    (users,) = (tmp_path / "shm").iterdir()
    return users


def keeper(home: Path, identity: IdentityKey | None = None, coordinator: str = ONE) -> EpochKeeper:
    home.mkdir(exist_ok=True)
    identity = identity or IdentityKey.generate()
    return EpochKeeper(
        home, "north", identity, MemoryStore(), hybrid=False, coordinator=coordinator
    )


def test_folders_of_homes_that_are_gone_are_deleted(memory: Path, tmp_path: Path) -> None:
    left, kept = keeper(tmp_path / "left"), keeper(tmp_path / "kept")
    for each in (left, kept):
        each.enter("f", 1)
        assert len(each.files) == 1
        assert each.files[0].stat().st_mode & 0o077 == 0
    assert left.files[0].parent.stat().st_mode & 0o077 == 0
    shutil.rmtree(tmp_path / "left")
    keeper(tmp_path / "third")
    assert left.files == []
    assert len(kept.files) == 1


def test_a_folder_that_is_being_made_stays(memory: Path, tmp_path: Path) -> None:
    (memory / "new").mkdir()
    (memory / "newer").mkdir()
    (memory / "newer" / "home").touch()  # its place is about to be written
    keeper(tmp_path / "home")
    assert (memory / "new").is_dir()
    assert (memory / "newer").is_dir()


def test_a_process_that_starts_again_finds_its_keys(memory: Path, tmp_path: Path) -> None:
    identity = IdentityKey.generate()
    first = keeper(tmp_path / "home", identity).enter("f", 3)
    again = keeper(tmp_path / "home", identity)
    assert again.enter("f", 3).keys.to_bytes() == first.keys.to_bytes()


def test_another_coordinator_counts_its_own_epochs(memory: Path, tmp_path: Path) -> None:
    """The first one's later epochs would have every epoch of the second refused."""
    identity = IdentityKey.generate()
    first = keeper(tmp_path / "home", identity).enter("f", 30)
    second = keeper(tmp_path / "home", identity, OTHER)
    assert second.files == []
    assert second.enter("f", 1).keys.to_bytes() != first.keys.to_bytes()
    again = keeper(tmp_path / "home", identity, OTHER)
    assert again.enter("f", 1).keys.to_bytes() == second.enter("f", 1).keys.to_bytes()


def test_an_epoch_that_is_too_old_for_a_process_that_started_again(
    memory: Path, tmp_path: Path
) -> None:
    identity = IdentityKey.generate()
    keeper(tmp_path / "home", identity).enter("f", 30)
    again = keeper(tmp_path / "home", identity)
    with pytest.raises(RosterError, match="an epoch after 30, got 2"):
        again.enter("f", 2)


def test_what_a_dying_process_left_half_written_is_deleted(memory: Path, tmp_path: Path) -> None:
    identity = IdentityKey.generate()
    first = keeper(tmp_path / "home", identity)
    first.enter("f", 3)
    part = first.files[0].with_suffix(".part")
    part.write_bytes(b"secrets")
    again = keeper(tmp_path / "home", identity)
    assert not part.exists()
    assert again.files == first.files


def test_keys_of_a_version_that_named_no_coordinator_stay(memory: Path, tmp_path: Path) -> None:
    identity = IdentityKey.generate()
    first = keeper(tmp_path / "home", identity)
    keys = first.enter("f", 3).keys.to_bytes()
    (first.files[0].parent / "coordinator").unlink()
    assert keeper(tmp_path / "home", identity).enter("f", 3).keys.to_bytes() == keys


def test_a_home_made_anew_in_the_same_place_does_not_find_the_old_ones_keys(
    memory: Path, tmp_path: Path
) -> None:
    """It would refuse every epoch before the old home's last."""
    old = keeper(tmp_path / "home")
    old.enter("f", 30)
    new = keeper(tmp_path / "home")
    assert old.files == new.files == []
    assert new.enter("f", 1).number == 1
    assert len(new.files) == 1
