"""A pytest plugin (`-p tests.faults.planting`): each named test runs with its fault planted.

Fixtures are made before, so that only the test itself runs against the faulty product. What became
of each test goes to the file named by the environment variable PLANTED_OUTCOMES.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.registry import FAULTS

PLANTS = {fault.test: fault.plant for fault in FAULTS}
OUTCOMES = "PLANTED_OUTCOMES"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        PLANTS[item.nodeid](patch)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    if report.when == "call" or not report.passed:
        error = "" if call.excinfo is None else call.excinfo.typename
        line = {"test": item.nodeid, "when": report.when, "error": error}
        with Path(os.environ[OUTCOMES]).open("a") as file:
            file.write(json.dumps(line) + "\n")
    return report
