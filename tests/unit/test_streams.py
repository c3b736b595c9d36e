import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlsys.common.streams import Stream


def test_items_come_in_order_and_the_producer_stays_within_its_bound():
    made = []

    def source():
        for i in range(20):
            made.append(i)
            yield i

    stream = Stream(source(), ahead=3)
    time.sleep(0.1)
    assert len(made) == 4  # three wait in the queue, one is in hand
    assert list(stream) == list(range(20))


def test_an_error_comes_after_the_items_before_it():
    def source():
        yield 1
        raise KeyError("lost")

    stream = iter(Stream(source(), ahead=2))
    assert next(stream) == 1
    with pytest.raises(KeyError, match="lost"):
        next(stream)


def test_closing_lets_the_producer_end_and_closes_its_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    stream = Stream(source(), ahead=1)
    stream.close()
    assert closed.wait(2.0)


def test_streams_on_one_thread_run_one_after_the_other():
    order = []

    def source(name):
        for _ in range(3):
            order.append(name)
            yield name

    with ThreadPoolExecutor(1) as executor:
        first, second = (Stream(source(name), ahead=3, executor=executor) for name in "ab")
        second.wait()
        assert order == list("aaabbb")
        assert list(first) == list("aaa") and list(second) == list("bbb")


def test_a_bound_below_one_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        Stream([], ahead=0)


def test_a_consumer_that_must_not_block_asks_for_what_is_ready():
    go = threading.Event()

    def source():
        yield "first"
        assert go.wait(5.0)
        yield "second"
        raise KeyError("lost")

    stream = Stream(source(), ahead=4)
    stream.wait_ready(5.0)
    assert stream.poll() == "first"
    started = time.monotonic()
    stream.wait_ready(0.05)
    assert 0.05 <= time.monotonic() - started < 2.0
    assert stream.poll() is None and not stream.ended()
    go.set()
    with pytest.raises(KeyError, match="lost"):
        stream.wait()
    assert not stream.ended()
    assert stream.poll() == "second" and stream.poll() is None
    with pytest.raises(KeyError, match="lost"):
        stream.ended()
