"""Flaky storage."""

import pytest

from mim_jax.data import retry
from mim_jax.errors import DataError


@pytest.fixture(autouse=True)
def delays(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    return waited


def flaky(failures: int, error: Exception):
    calls = iter(range(failures + 1))

    def read() -> str:
        if next(calls) < failures:
            raise error
        return "content"

    return read


def test_a_read_is_tried_again(delays, caplog):
    assert retry.read_with_retries(flaky(3, OSError("timed out")), "/data/a.jpg") == "content"
    assert delays == [0.2, 0.4, 0.8]
    assert "Reading /data/a.jpg failed (timed out); trying again in 0.2 s." in caplog.text


def test_but_not_for_ever(delays):
    with pytest.raises(DataError, match="Cannot read /data/a.jpg after 4 attempts: timed out; check the storage"):
        retry.read_with_retries(flaky(4, OSError("timed out")), "/data/a.jpg")


def test_other_errors_are_not_retried(delays):
    with pytest.raises(KeyError):
        retry.read_with_retries(flaky(1, KeyError("x")), "/data/a.jpg")
    assert not delays
