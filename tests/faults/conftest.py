"""The small federation's fixtures."""

from tests.small_federation import (  # noqa: F401  (fixtures)
    federation,
    ground,
    make_federation,
    take,
)
