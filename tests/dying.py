"""Crashes: an exception that nothing in the product catches, thrown where a test says."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Killed(BaseException):
    """The process dies here: nothing in the product catches it."""


@contextmanager
def dying(owner: Any, name: str, call: int = 1, when: str = "before") -> Iterator[None]:
    """Within the block the named call kills, and it must come to that."""
    original, count = getattr(owner, name), itertools.count(1)

    def deadly(*args: Any, **options: Any) -> Any:
        is_last = next(count) == call
        if is_last and when == "before":
            raise Killed(name)
        result = original(*args, **options)
        if is_last:
            raise Killed(name)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, deadly)
        try:
            yield
        except Killed:
            return
    pytest.fail(f"{owner.__name__}.{name} was not called {call} times")
