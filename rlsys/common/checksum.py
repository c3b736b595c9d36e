"""Fingerprints of bytes: xxh3 (https://xxhash.com), which a core computes about as fast as it reads memory.

They detect accidents, not attacks: an attacker can construct two contents with the same fingerprint. On one core of an EPYC
with AVX2 and instructions for sha256, crc32 takes about eight times as long, and sha256 seventeen to twenty times.
"""

from __future__ import annotations

import numpy as np
import xxhash

Data = bytes | memoryview | np.ndarray
"""Bytes or an array; its memory must be contiguous."""


def checksum(*parts: Data) -> int:
    """A 64-bit fingerprint of the concatenated parts."""
    if len(parts) == 1:
        return xxhash.xxh3_64_intdigest(parts[0])
    hasher = xxhash.xxh3_64()
    for part in parts:
        hasher.update(part)
    return hasher.intdigest()


def content_key(*parts: Data) -> bytes:
    """A 128-bit fingerprint that identifies equal contents: among n different contents, two share a key by chance once in 2^129
    / n^2.
    """
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(part)
    return hasher.digest()
