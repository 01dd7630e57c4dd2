"""Two opened attempts over almost the same members: their difference is no member's contribution.

The coordinator opens attempt 1 over all four, says it failed, and opens attempt 2 without west.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privacy.dp.lattice import decode, release_variance
from tests.small_federation import NAMES
from tests.small_hands import Hands

OTHERS = tuple(name for name in NAMES if name != "west")


def opened(hands: Hands, plan: Any, names: tuple[str, ...]) -> np.ndarray:
    total = hands.collect(plan, names)
    request = total.close()
    total.certify([hands.nodes[name].sign_survivors(request) for name in names])
    replies = [hands.nodes[name].unmask(total.unmask_request(name)) for name in names]
    return decode(total.open_sum(replies).words, plan.step)


@pytest.mark.parametrize("seed", [7, None], ids=["seeded", "secure"])
def test_the_difference_of_two_attempts_holds_the_noise_of_both(
    take: Callable[..., Hands], seed: int | None
) -> None:
    hands = take(seed=seed)
    plans = hands.plan(), hands.plan(attempt=2)
    sums = opened(hands, plans[0], NAMES), opened(hands, plans[1], OTHERS)
    step = plans[0].step
    noise = np.sqrt(release_variance(step, 4) + release_variance(step, 3))
    west_alone = np.sqrt(release_variance(step, 4) - release_variance(step, 3))
    spread = float(np.std(sums[0] - sums[1]))
    assert spread == pytest.approx(noise, rel=0.05)
    assert spread > 2 * west_alone
    for name in NAMES:
        debits = hands.federation.bodies(name, "release-debited")
        assert len(debits) == (2 if name in OTHERS else 1)
        assert len(hands.federation.bodies(name, "run-reserved")) == 1
