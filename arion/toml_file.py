"""Settings files, as they are written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from privacy.ledger.files import replace_durably


def write_toml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a settings file durably."""
    replace_durably(path, tomli_w.dumps(values).encode())
