"""A coordinator after another: a new authority for the same home, or a new home for its members."""

from pathlib import Path

from coordinator import locks
from coordinator.errors import RunError
from coordinator.service.database import open_database, transaction
from coordinator.service.home import load_service_settings
from coordinator.service.invitations import withdraw
from coordinator.service.pki import Authority
from coordinator.service.serve import LOCK_FILE
from coordinator.shared import MEMBERS_FOLDER
from privacy.ledger.files import make_directory, replace_durably
from privacy.ledger.head import TreeHead, parse_signed_line, parse_statement
from privacy.ledger.verify import WITNESS_SUFFIX


def replace_authority(home: Path) -> int:
    """Make a new certificate authority, after whose start every older certificate is refused.

    Signing key, ledger, runs and members stay; each member joins again, from its home and with a
    new invitation. After a crash the same call makes a whole one.

    Args:
        home: the coordinator's.

    Returns:
        How many open invitations were dropped, as they name the old authority.

    Raises:
        RunError: there is no home, or it is served.

    """
    settings = load_service_settings(home)
    descriptor = locks.take(home / LOCK_FILE)
    if descriptor is None:
        raise RunError(
            f"Expected that nobody serves {home}, got a process that does. Stop it first."
        )
    with locks.held(descriptor):
        engine = open_database(home, settings.database)
        try:
            with transaction(engine) as connection:
                dropped = withdraw(connection)
            Authority.create(home, settings.federation)
        finally:
            engine.dispose()
    return dropped


def take_over(earlier: Path, home: Path) -> int:
    """Copy what an earlier coordinator held of its members' own ledgers into a new home.

    A member that released before goes on only with whoever shows it a head of its ledger: so it
    would learn that its disk was put back. The members signed them, so that who had the earlier
    home cannot have altered one, but could have put an older one in its place.

    Args:
        earlier: the earlier coordinator's home, or a restored copy of it.
        home: the new one.

    Returns:
        How many members.

    Raises:
        RunError: there are none, or a file is not a head.

    """
    paths = sorted((earlier / MEMBERS_FOLDER).glob(f"*{WITNESS_SUFFIX}"))
    if not paths:
        raise RunError(
            f"Expected heads of members' ledgers in {earlier / MEMBERS_FOLDER}, got none. Name the "
            "home of the coordinator that this one follows, or a restored backup of it."
        )
    make_directory(home / MEMBERS_FOLDER)
    for path in paths:
        line = path.read_bytes()
        try:
            parse_statement(parse_signed_line(line.removesuffix(b"\n")).payload, TreeHead)
        except ValueError as error:
            raise RunError(
                f"Expected a member's signed head in {path}, got something else. Take the file of "
                "a backup."
            ) from error
        replace_durably(home / MEMBERS_FOLDER / path.name, line)
    return len(paths)
