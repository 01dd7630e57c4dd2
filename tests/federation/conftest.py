"""The small federation's fixtures."""

from tests.small_federation import (  # noqa: F401  (fixtures)
    federation,
    ground,
    hands,
    make_federation,
    opened,
    take,
    undisturbed,
)
