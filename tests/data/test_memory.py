"""Bounds on memory."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mim_jax.data.memory import MemoryBudget, check_fits
from mim_jax.errors import DataError


def test_reservations_never_exceed_the_budget():
    budget, lock, held, peak = MemoryBudget(10), threading.Lock(), [0], [0]

    def work(needed: int) -> None:
        with budget.reserve(needed):
            with lock:
                held[0] += needed
                peak[0] = max(peak[0], held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= needed

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 1, 7, 10, 2, 4] * 8))
    assert 7 < peak[0] <= 10  # full, or nearly so, and never more


def test_what_needs_more_than_there_is_gets_it_all_and_gives_it_back():
    budget = MemoryBudget(10)
    with pytest.raises(KeyError), budget.reserve(1000):
        raise KeyError
    with budget.reserve(10):
        pass


def test_arrays_larger_than_the_machine():
    check_fits(2**20, "a.npz")
    with pytest.raises(DataError, match=r"a\.npz unpacks to 1,125,899,906,842,624 bytes, more than the memory"):
        check_fits(2**50, "a.npz")
