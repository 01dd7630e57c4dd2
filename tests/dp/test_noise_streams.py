"""The CSPRNG behind the noise: published vectors, tails out to 5 sigma, streams apart."""

import math
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from scipy import stats

from client.entropy import Entropy
from privacy.dp.keystream import Keystream, derive_seeded_key
from privacy.dp.noise import SecureGaussian, SeededGaussian

SIGMAS = (3.0, 4.0, 4.5, 5.0)
SAMPLES, CHUNK = 40_000_000, 1_000_000


def blocks_of(words: NDArray[np.uint64]) -> set[bytes]:
    """The cipher's 128-bit blocks in a stretch of a stream."""
    return {bytes(block) for block in words.view(np.uint8).reshape(-1, 16)}


def test_the_first_blocks_are_those_of_the_gcm_specification() -> None:
    """AES-256 under the zero key of the counters 0, 1 and 2.

    Source: McGrew and Viega, The Galois/Counter Mode of Operation, appendix B: H, the tag of test
    case 13 and the ciphertext of test case 14.
    """
    expected = (
        "dc95c078a2408989ad48a21492842087"
        "530f8afbc74536b9a963b4f1c4cb738b"
        "cea7403d4d606b6e074ec5d3baf39d18"
    )
    assert Keystream(bytes(32)).words(6).tobytes().hex() == expected


@pytest.mark.parametrize(
    ("key", "block"),
    [
        (
            "c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558",
            "46f2fb342d6f0ab477476fc501242c5f",
        ),
        (
            "28d46cffa158533194214a91e712fc2b45b518076675affd910edeca5f41ac64",
            "4bf3b0a69aeb6657794f2901b1440ad4",
        ),
        (
            "c1cc358b449909a19436cfbb3f852ef8bcb5ed12ac7058325f56e6099aab1a1c",
            "352065272169abf9856843927d0674fd",
        ),
    ],
)
def test_first_blocks_of_nist_key_vectors(key: str, block: str) -> None:
    """Source: NIST AESAVS, KeySbox-256: plaintext zero, as the counter is at first."""
    assert Keystream(bytes.fromhex(key)).words(2).tobytes().hex() == block


def test_the_counter_carries_over_every_byte_that_a_stream_reaches() -> None:
    """Blocks around 2^8 and 2^16, each from the block cipher alone."""
    key = derive_seeded_key(3, "carry")
    stream = Keystream(key).words(2 * 65_600).view(np.uint8).reshape(-1, 16)
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    for counter in (0, 1, 254, 255, 256, 257, 511, 512, 65_535, 65_536, 65_599):
        assert stream[counter].tobytes() == cipher.update(counter.to_bytes(16, "big"))


def tail_counts(
    normal: Callable[[int], NDArray[np.float64]],
) -> dict[tuple[float, int], int]:
    """How many samples lie beyond each bound, on either side."""
    counts = dict.fromkeys(product(SIGMAS, (-1, 1)), 0)
    for _ in range(0, SAMPLES, CHUNK):
        sample = normal(CHUNK)
        far = sample[np.abs(sample) > SIGMAS[0]]
        for sigmas, side in counts:
            counts[sigmas, side] += int(np.count_nonzero(side * far > sigmas))
    return counts


def has_normal_tails(counts: dict[tuple[float, int], int]) -> bool:
    """Each side's count within the exact interval at 1e-6, and so for both sides together."""

    def fits(seen: int, sides: int, sigmas: float) -> bool:
        expected = SAMPLES * sides * stats.norm.sf(sigmas)
        low, high = stats.poisson.interval(1 - 1e-6, expected)
        return bool(low <= seen <= high)

    both = {sigmas: counts[sigmas, -1] + counts[sigmas, 1] for sigmas in SIGMAS}
    return all(fits(seen, 1, sigmas) for (sigmas, _), seen in counts.items()) and all(
        fits(seen, 2, sigmas) for sigmas, seen in both.items()
    )


def far_source(label: str) -> Callable[[int], NDArray[np.float64]]:
    return SeededGaussian(derive_seeded_key(20240501, "far tails", label)).normal


def test_tails_are_normal_out_to_five_sigma() -> None:
    """40 million samples: 1267 beyond 4 sigma on a side, 136 beyond 4.5, 11.5 beyond 5."""
    assert has_normal_tails(tail_counts(far_source("")))
    expected = [round(SAMPLES * stats.norm.sf(sigmas), 1) for sigmas in SIGMAS]
    assert expected == [53995.9, 1266.8, 135.9, 11.5]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda x: x / 10, id="a tenth"),
        pytest.param(lambda x: 1.03 * x, id="three percent more"),
        pytest.param(lambda x: 0.97 * x, id="three percent less"),
        pytest.param(lambda x: np.where(np.abs(x) > 5.0, x / 2, x), id="cut at 5"),
        pytest.param(lambda x: np.where(np.abs(x) > 4.5, x / 2, x), id="cut at 4.5"),
        pytest.param(lambda x: np.where(x > 4.5, -x, x), id="one side only"),
    ],
)
def test_wrong_tails_are_rejected(wrong: Callable[[NDArray[np.float64]], Any]) -> None:
    """A source that is right but for its tails, or its scale, does not pass."""
    right = far_source("")
    assert not has_normal_tails(tail_counts(lambda count: wrong(right(count))))


def test_threads_with_sources_of_their_own_share_no_block() -> None:
    """Each source of private noise has a key of its own: no block of one is in another."""
    streams: list[set[bytes]] = []
    barrier = threading.Barrier(8)

    def draw() -> None:
        source = SecureGaussian()
        barrier.wait()
        streams.append(blocks_of(source._stream.words(2 * 4096)))

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(stream) for stream in streams] == [4096] * 8
    assert len(set().union(*streams)) == 8 * 4096


def test_two_threads_on_one_stream_never_get_a_word_twice() -> None:
    """They are refused, or served one after the other."""
    stream, given, refused = Keystream(), list[NDArray[np.uint64]](), list[str]()

    def draw() -> None:
        for _ in range(100):
            try:
                given.append(stream.words(65_536))
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    starts = [words[:2].tobytes() for words in given]
    assert len(given) + len(refused) == 400
    assert len(set(starts)) == len(starts)
    assert all("Give each a source of its own" in text for text in refused)


def test_no_two_places_of_a_simulation_share_a_block() -> None:
    """Sample and noise of every node, run, round and attempt come from streams apart."""
    places = list(product(("north", "south"), ("a", "b"), (1, 2), (1, 2)))
    entropy = Entropy(7)
    streams = [entropy.gaussian(*place)._stream for place in places]  # type: ignore[attr-defined]
    words = [stream.words(512) for stream in streams]
    words += [entropy.uniform(*place).words(512) for place in places]
    blocks = [blocks_of(part) for part in words]
    assert len(set().union(*blocks)) == 256 * 2 * len(places)


def test_moments_are_those_of_the_normal_law() -> None:
    """The first eight, each within 5 standard errors: E x^k is 0 or (k-1)!!."""
    sample = SeededGaussian(derive_seeded_key(20240501, "eight moments")).normal(2_000_000)
    power = np.ones_like(sample)
    for order in range(1, 9):
        power *= sample
        expected = 0 if order % 2 else math.prod(range(1, order, 2))
        error = math.sqrt((math.prod(range(1, 2 * order, 2)) - expected**2) / len(sample))
        assert abs(power.mean() - expected) < 5 * error, order
