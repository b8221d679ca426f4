"""Numbers that look random but are always the same for the same names: a salted hash of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["uniforms"]

_BITS = 52


def uniforms(
    salt: str, purpose: str, names: Iterable[str], *, about: str = ""
) -> npt.NDArray[np.float64]:
    """Give each name its own place on the line from 0 to 1, the same today and in ten years.

    The place is the first 52 bits of BLAKE2b (RFC 7693) of the name, keyed by the salt. Nothing is
    stored, and nobody without the salt can foretell it. Places for another purpose, or about
    something else, are independent.

    Parameters
    ----------
    salt: the project's secret for this purpose.
    purpose: what the number decides, up to 16 ASCII characters.
    names: ids of customers or decisions.
    about: what else the number depends on, such as an offer's id.

    Returns
    -------
    One number in [0, 1) for each name. 52 bits, so that a total of probabilities that is a rounding
    away from 1 still exceeds it after scaling (see `arbitrate.choose`).
    """
    copy = _start(salt, purpose, about).copy
    digests = []
    for name in names:
        one = copy()
        one.update(name.encode("utf-8", "surrogatepass"))
        digests.append(one.digest())
    bits = np.frombuffer(b"".join(digests), dtype=">u8") >> np.uint64(64 - _BITS)
    return bits.astype(np.float64) * 2.0**-_BITS


@lru_cache(maxsize=4096)
def _start(salt: str, purpose: str, about: str) -> hashlib.blake2b:
    """The hash before any name: the same for every decision."""
    key = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    start = hashlib.blake2b(digest_size=8, key=key, person=purpose.encode("ascii"))
    prefix = about.encode(errors="surrogatepass")
    # The length first, or "ab" about "c" would be "a" about "bc".
    start.update(len(prefix).to_bytes(8, "big") + prefix)
    return start
