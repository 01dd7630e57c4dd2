"""What tests of exports and withdrawals share: the commands, public text, owners, and their key."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from arion.cli import app
from arion.withdrawal_before import WithdrawalOrder
from models.composition import OwnedShare, Ownership
from models.expert_module import NOT_PRIVATE
from models.variants import check
from models.variants.probe import Probe
from privacy.identity import IdentityKey

KEY = IdentityKey.from_bytes(bytes(32))
OWNERS = Ownership(
    base_digest="0" * 64,
    shares=(
        OwnedShare(owner="public", first=0, count=2),
        OwnedShare(owner="court", first=2, count=2, module="1" * 64, privacy=NOT_PRIVATE),
        OwnedShare(owner="ward", first=4, count=2, module="2" * 64, privacy=NOT_PRIVATE),
    ),
)


def model(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["model", *map(str, arguments)])


def public(folder: Path, texts: list[str], name: str) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(texts))
    (folder / "public.toml").write_text(f'name = "{name}"\nsource = "invented"\nlicence = "CC0"\n')
    return folder


@contextmanager
def unmeasured() -> Iterator[None]:
    """Artefacts are not measured: speed and memory are tests/variants/test_check.py's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "probe", lambda *arguments: Probe(10.0, 1, 1000, None))
        yield


def order(here: Path, **changes: Any) -> WithdrawalOrder:
    """The court's withdrawal from the model and the registry in a folder."""
    given = {
        "model": here / "model", "owner": "court", "key": here / "key",
        "receipt": here / "receipt.json", "registry": here / "registry",
    }  # fmt: skip
    return WithdrawalOrder(**{**given, **changes})
