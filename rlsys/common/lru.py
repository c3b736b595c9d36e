"""A cache bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Keeps the most recently used values within `limit` bytes; the newest value always stays.

    cache = ByteCache(1 << 20)
    cache.put("key", value, num_bytes=value.nbytes)
    cache.get("key")      # None if the value was dropped
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.num_bytes = 0
        """Bytes of all values in the cache."""
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._kept

    def get(self, key: K) -> V | None:
        """The value under a key, which counts as used now; `None` if there is none."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def clear(self) -> None:
        """Remove all values."""
        self._kept.clear()
        self.num_bytes = 0

    def put(self, key: K, value: V, *, num_bytes: int) -> None:
        """Add a value, and drop the least recently used ones beyond the limit."""
        self.num_bytes += num_bytes - self._kept.pop(key, (None, 0))[1]
        self._kept[key] = value, num_bytes
        while self.num_bytes > self._limit and len(self._kept) > 1:
            self.num_bytes -= self._kept.popitem(last=False)[1][1]
