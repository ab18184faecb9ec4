"""The flags by which processes find one another are checked before anything is started."""

import socket

import pytest

from mim_jax.cli import _check_by_hand
from mim_jax.errors import ConfigError
from tests.processes import free_port


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 1), "Give --coordinator, --num_processes and --process_id together."),
        (("10.0.0.1:8476", None, 0), "Give --coordinator, --num_processes and --process_id together."),
        (("10.0.0.1", 2, 0), r"--coordinator is '10\.0\.0\.1'; write process 0's host:port"),
        (("10.0.0.1:http", 2, 0), "write process 0's host:port"),
        (("10.0.0.1:70000", 2, 0), "write process 0's host:port"),
        ((":8476", 2, 0), "write process 0's host:port"),
        (("10.0.0.1:8476", 2, 2), "--process_id is 2, but the 2 processes count from 0"),
    ],
)
def test_flags_that_cannot_work_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        _check_by_hand(*given)


def test_process_0_needs_a_free_port():
    _check_by_hand(f"127.0.0.1:{free_port()}", 2, 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="Process 0 cannot listen on port"):
            _check_by_hand(address, 2, 0)
        _check_by_hand(address, 2, 1)  # the others are to find it taken: by process 0
