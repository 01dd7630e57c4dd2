"""Prints what pyproject.toml requires, with the extras that are named: a layer without our code."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [name for name in sys.argv[1].split(",") if name]
print(*project["dependencies"], sep="\n")
for name in extras:
    print(*project["optional-dependencies"][name], sep="\n")
