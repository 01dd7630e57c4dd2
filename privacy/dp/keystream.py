"""Random 64-bit words: the AES-256-CTR keystream under a key that is used once.

Source: NIST SP 800-38A, section 6.5 (CTR mode); as a pseudo-random generator it is
indistinguishable from uniform words if AES-256 is a pseudo-random permutation.
"""

import os

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
_ZEROS = memoryview(bytes(1 << 19))


class Keystream:
    """A stream of uniform 64-bit words that is consumed once and never rewound.

    Without a key the stream draws one from the operating system and can be neither repeated nor
    exported; after a fork the child draws a new key, so that two processes never share words. A
    stream serves one thread at a time; each thread takes a stream of its own.
    The 128-bit block counter starts at zero and cannot wrap within 2^132 bytes.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise ValueError(
                f"Expected a key of {KEY_BYTES} bytes, got {len(key)}. Use derive_seeded_key."
            )
        self.seeded = key is not None
        self._pid = os.getpid()
        self._cipher = _cipher(os.urandom(KEY_BYTES) if key is None else key)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of the stream, each uniform on [0, 2^64).

        Raises:
            RuntimeError: another thread is drawing; no word is given twice.

        """
        if not self.seeded and os.getpid() != self._pid:
            self._pid = os.getpid()
            self._cipher = _cipher(os.urandom(KEY_BYTES))
        out = np.empty(count, dtype="<u8")
        view = out.view(np.uint8).data
        for start in range(0, len(view), len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            try:
                self._cipher.update_into(_ZEROS[: len(part)], part)
            except RuntimeError as error:
                raise RuntimeError(
                    "Expected one thread at a time on a keystream, got two. Give each a source of "
                    "its own."
                ) from error
        return out


def derive_seeded_key(seed: int, *labels: str | int) -> bytes:
    """Derive the key of a reproducible stream, for tests and simulations only.

    Args:
        seed: the simulation's seed, 0 <= seed < 2^128.
        labels: what the stream is for, such as ("noise", "hospital-a", 3); two different label
            tuples give independent streams.

    Returns:
        32 bytes. Whoever knows the seed can subtract the noise: such a run is not private.

    Source: RFC 5869 (HKDF-SHA-256), labels length-prefixed in `info`.

    """
    if not 0 <= seed < 1 << 128:
        raise ValueError(f"Expected 0 <= seed < 2^128, got {seed}. Choose a smaller seed.")
    info = b"arion/v1/seeded-stream"
    for label in labels:
        kind = b"i" if isinstance(label, int) else b"s"
        text = str(label).encode()
        info += kind + len(text).to_bytes(4, "big") + text
    kdf = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info)
    return kdf.derive(seed.to_bytes(16, "big"))


def _cipher(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
