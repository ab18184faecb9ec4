"""Batches in flight."""

import threading
import time

import pytest

from mim_jax.data import prefetch
from mim_jax.errors import ConfigError


def counting(log: list[int], stop: int = 10**9):
    for number in range(stop):
        log.append(number)
        yield number


def wait_for(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_order_and_end():
    assert list(prefetch(counting([], 7), lambda number: number * 10)) == [0, 10, 20, 30, 40, 50, 60]
    assert list(prefetch(iter([]), lambda number: number)) == []


def test_depth_batches_are_in_flight():
    log: list[int] = []
    with prefetch(counting(log), lambda number: number, depth=3) as stream:
        wait_for(lambda: len(log) == 3)
        time.sleep(0.05)
        assert len(log) == 3
        assert next(stream) == 0
        wait_for(lambda: len(log) == 4)


def test_what_the_loader_raises_reaches_the_consumer():
    def broken():
        yield 1
        raise OSError("the disk is gone")

    stream = prefetch(broken(), lambda number: number)
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_what_put_raises_reaches_the_consumer():
    with pytest.raises(ZeroDivisionError):
        next(prefetch(iter([1]), lambda number: number / 0))


def test_waiting_is_measured():
    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    stream = prefetch(slow(), lambda number: number)
    assert stream.wait_seconds == 0.0
    assert list(stream) == [0, 1, 2]
    assert 0.04 < stream.wait_seconds < 2.0

    patient = prefetch(iter(range(3)), lambda number: number, depth=3)
    time.sleep(0.1)
    assert list(patient) == [0, 1, 2] and patient.wait_seconds < 0.04


def test_close_stops_the_threads_and_the_loader():
    class Loader:
        closed = False

        def __iter__(self):
            return self

        def __next__(self):
            return 1

        def close(self):
            self.closed = True

    loader, before = Loader(), threading.active_count()
    stream = prefetch(loader, lambda number: number)
    next(stream)
    stream.close()
    assert loader.closed and threading.active_count() == before
    assert list(stream) == []


def test_a_depth_of_nothing():
    with pytest.raises(ConfigError, match="depth is 0"):
        prefetch(iter([]), lambda number: number, depth=0)
