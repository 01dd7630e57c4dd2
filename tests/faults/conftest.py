"""The small federation's fixtures."""

from tests.small_federation import (  # noqa: F401  (fixtures)
    federation,
    ground,
    make_federation,
)
from tests.small_hands import take  # noqa: F401  (fixtures)
