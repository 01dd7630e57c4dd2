"""The small federation's fixtures."""

from tests.experts_release import home, make_home  # noqa: F401  (fixtures)
from tests.small_federation import (  # noqa: F401  (fixtures)
    federation,
    ground,
    hands,
    make_federation,
    opened,
    take,
    undisturbed,
)
