"""The small federation's fixtures."""

from tests.small_federation import (  # noqa: F401  (fixtures)
    federation,
    federation_of,
    ground,
    make_federation,
    opened,
    undisturbed,
)
from tests.small_hands import hands, take  # noqa: F401  (fixtures)
