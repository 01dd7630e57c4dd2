"""How fast noise is drawn and encoded, per core.

Peer: numpy's `standard_normal` (PCG64), which is fast and not secure. Limit: the AES-256-CTR
keystream that the noise is made of, 8 bytes a sample. The last row is all that a node does to a
clipped sum before masking: noise, rounding to the lattice, reduction into the ring.
"""

import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.harness import Row, context, interleave, main, paired_ratio
from privacy.dp.keystream import Keystream
from privacy.dp.lattice import encode
from privacy.dp.noise import SecureGaussian
from privacy.dp.plan import PrivateStep

OURS, PEER, LIMIT, ENCODED = "CSPRNG Gaussian", "numpy standard_normal", "keystream", "encoded"
STEP = PrivateStep(
    clipping_norm=1.0, noise_multiplier=1.0, sampling_probability=0.01, expected_batch=64.0,
    honest_survivors=2, releases=1, unit="record",
)  # fmt: skip


def run(quick: bool) -> Iterator[Row]:
    """Yield samples per second of the source alone, and with encoding."""
    torch.set_num_threads(1)
    samples = 2**20 if quick else 2**22
    repetitions = 5 if quick else 25
    secure, stream = SecureGaussian(), Keystream()
    plain = np.random.Generator(np.random.PCG64())
    clipped = np.zeros(samples, np.float32)
    steps: dict[str, Callable[[], object]] = {
        OURS: lambda: secure.normal(samples),
        PEER: lambda: plain.standard_normal(samples),
        LIMIT: lambda: stream.words(samples),
        ENCODED: lambda: encode(clipped, STEP, secure),
    }
    seconds = interleave(steps, repetitions)
    rates = {name: samples / statistics.median(found) / 1e6 for name, found in seconds.items()}
    details = context(
        ["numpy", "torch", "cryptography"], threads=1, samples=samples, repetitions=repetitions
    )
    for name, label in ((OURS, "Gaussian samples"), (ENCODED, "noised and encoded coordinates")):
        yield Row(
            label, rates[name], "M/s", PEER, rates[PEER],
            paired_ratio(seconds[PEER], seconds[name]), LIMIT, rates[LIMIT],
            paired_ratio(seconds[LIMIT], seconds[name]), details,
        )  # fmt: skip


if __name__ == "__main__":
    main(run)
