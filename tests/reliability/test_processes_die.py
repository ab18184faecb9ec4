"""One of two processes dies or hangs: the other ends with an error in time, and a restart resumes."""

import signal
import time

import pytest

from tests.processes import command, finish, free_port, launch, losses, rows, run, wait_for_step

HEARTBEAT = 10  # seconds
LONG = {"duration": "4000 steps", "checkpoint.every": "2 steps"}


def start_two(workdir):
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", f"--heartbeat_seconds={HEARTBEAT}"]
    return [launch(command(workdir, LONG, *flags, f"--process_id={index}")) for index in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_the_other_one_does_not_hang_for_ever(victim, number, tmp_path):
    processes = start_two(tmp_path)
    try:
        wait_for_step(tmp_path, 6)
        processes[victim].send_signal(number)
        started = time.monotonic()
        code, output = finish(processes[1 - victim], seconds=6 * HEARTBEAT)
        assert time.monotonic() - started < 4 * HEARTBEAT
        assert code != 0, output
    finally:
        for process in processes:
            process.kill()
        finish(processes[victim])
    reached = max(losses(tmp_path))
    shorter = {**LONG, "duration": f"{reached + 4} steps", "schedule.name": "constant"}
    code, output = run(command(tmp_path, shorter, "--allow_config_change"))
    assert code == 0, output
    assert "Resuming at step" in output
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, reached + 5))
