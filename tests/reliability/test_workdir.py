"""Work directories that cannot be used: in use, no directory, not writable."""

import re
import signal
import sys

import pytest

from mim_jax.errors import ConfigError
from mim_jax.training.lock import workdir_lock
from mim_jax.training.loop import Trainer
from tests.processes import command, finish, launch, losses, rows, run, wait_for_step
from tests.tiny import tiny_config

LONG = {"duration": "4000 steps", "checkpoint.every": "50 steps"}


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    first = launch(command(tmp_path, LONG))
    try:
        wait_for_step(tmp_path, 3)
        code, output = run(command(tmp_path, LONG))
        assert code == 2
        sentence = output.splitlines()[-1]
        assert re.search(rf"workdir {tmp_path} is in use by another run \(process {first.pid} on ", sentence)
        assert first.poll() is None  # and the first goes on
    finally:
        first.send_signal(signal.SIGKILL)
        finish(first)
    reached = max(losses(tmp_path))
    shorter = {**LONG, "duration": f"{reached + 1} steps", "schedule.name": "constant"}
    code, output = run(command(tmp_path, shorter, "--allow_config_change"))  # a dead run holds nothing
    assert code == 0, output
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, reached + 2))


def test_two_runs_in_one_process_are_as_bad(tmp_path):
    with workdir_lock(tmp_path), pytest.raises(ConfigError, match="is in use by another run"):
        Trainer(tiny_config("mae"), tmp_path).run()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_work_directory(place, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match=r"cannot be a directory: .*file is a file; give another one"):
        Trainer(tiny_config("mae"), tmp_path / place)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a place where even root cannot write")
def test_a_place_that_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match=r"workdir /proc/1/run cannot be written"):
        Trainer(tiny_config("mae"), "/proc/1/run").run()
