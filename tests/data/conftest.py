"""Small shards that tests write for themselves."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteShard = Callable[..., Path]


@pytest.fixture
def write_shard(tmp_path: Path) -> WriteShard:
    """Return `write(name, *rows)`: rows as JSON lines, or bytes as they are; ".gz" compresses."""

    def write(name: str, *rows: dict[str, Any] | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        content = b"".join(line + b"\n" for line in lines)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write
