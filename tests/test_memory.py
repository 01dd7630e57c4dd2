"""Freed memory stays with the process, up to a limit."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
from arion.memory import keep_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

if int(sys.argv[1]):
    assert keep_freed_memory(int(sys.argv[1]) * 10**6)
before = resident_mb()
blocks = [bytearray(60_000_000) for _ in range(3)]
held = resident_mb()
del blocks
print(held - before, resident_mb() - before)
"""


GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told to keep memory")
@pytest.mark.parametrize(("limit_mb", "kept"), [(0, False), (30, False), (400, True)])
def test_freed_blocks_are_kept_below_the_limit(limit_mb: int, kept: bool) -> None:
    """The default, blocks above the limit, and blocks below it."""
    command = [sys.executable, "-c", SCRIPT, str(limit_mb)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    held, after = map(float, done.stdout.split())
    assert held > 150
    assert after > 150 if kept else after < 120
