"""Takes items from a slow source in another thread, for a consumer that must not block."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Feeder(Generic[T]):
    """Holds at most `ahead` items of `source` ready.

    feeder = Feeder(source, ahead=4)
    while not feeder.ended():
        item = feeder.poll()      # None if none is ready now
    """

    def __init__(self, source: Iterable[T], *, ahead: int) -> None:
        self._ahead = ahead
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._exhausted = self._closed = False
        self._error: BaseException | None = None
        threading.Thread(target=self._fill, args=(source,), daemon=True, name="feeder").start()

    def _fill(self, source: Iterable[T]) -> None:
        try:
            for item in source:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._items) < self._ahead)
                    if self._closed:
                        break
                    self._items.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # raised at the consumer, whatever it is
            self._error = error
        with self._changed:
            self._exhausted = True
            self._changed.notify_all()

    def poll(self) -> T | None:
        """The next item, if one is ready."""
        with self._changed:
            if not self._items:
                return None
            self._changed.notify_all()
            return self._items.popleft()

    def ended(self) -> bool:
        """Whether no item will come any more."""
        with self._changed:
            return self._exhausted and not self._items

    def check(self) -> None:
        """
        Raises:
            Exception: what the source raised.
        """
        if self._error is not None:
            raise self._error

    def wait(self, timeout_s: float) -> None:
        """Until an item is ready or the source has ended, but not longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._exhausted, timeout_s)

    def close(self) -> None:
        """Take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
