"""A stage that runs ahead of its consumer by a bounded number of items."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")


class Stream(Generic[T]):
    """Iterates `source` in another thread, at most `ahead` items before the consumer.

    An error of the source is raised in the consumer, after the items that came before it. Closing the stream (also after
    leaving the `for` loop early) lets the producer end.

        stream = Stream(slow_source(), ahead=4)
        for item in stream: ...

    A consumer that must not block polls instead:

        while not stream.ended():
            item = stream.poll()      # None if none is ready now
    """

    def __init__(self, source: Iterable[T], *, ahead: int, executor: Executor | None = None) -> None:
        """
        Args:
            source: the items.
            ahead: bound on finished items that wait for the consumer, at least 1.
            executor: where the producer runs; streams that share a one-thread executor run one after the other.
        """
        if ahead < 1:
            raise ValueError(f"Stream.ahead must be at least 1, got {ahead}")
        self._source = source
        self._ahead = ahead
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        if executor is None:
            threading.Thread(target=self._produce, daemon=True, name="rlsys-stream").start()
        else:
            executor.submit(self._produce)

    def _produce(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put(item):
                    break
        except BaseException as caught:  # any exception is handed to the consumer
            error = caught
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _put(self, item: T) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._ahead)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
            if self.ended():
                return
            yield self._take()

    def poll(self) -> T | None:
        """The next item if one is ready, else `None`."""
        return self._take() if self._items else None

    def ended(self) -> bool:
        """Whether the stream has no further items.

        Raises:
            Exception: the source's error, once all items before it have been taken.
        """
        with self._changed:
            if self._items or not self._ended:
                return False
        if self._error is not None:
            raise self._error
        return True

    def wait_ready(self, timeout_s: float) -> None:
        """Block until an item is ready or the stream has ended, for at most `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended, timeout_s)

    def wait(self) -> None:
        """Block until the source has ended. `ahead` must be large enough for the items that are not consumed meanwhile.

        Raises:
            Exception: the source's error; a consumer gets it as well, after the items before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Let the producer end after its current item."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self) -> T:
        with self._changed:
            item = self._items.popleft()
            self._changed.notify_all()
        return item
