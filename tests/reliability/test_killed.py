"""Runs that are killed or told to go: restarted by the same command, they end where the untouched run ends."""

import random
import signal

import pytest

from mim_jax.inspect import inspect_run
from mim_jax.training.preemption import EXIT_PREEMPTED
from tests.processes import (
    assert_same_variables,
    command,
    finish,
    launch,
    losses,
    rows,
    run,
    wait_for_step,
)
from tests.reliability.faulty import MODULE, fault

STEPS = 60
LONG = {"duration": f"{STEPS} steps", "checkpoint.every": "3 steps"}
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run nothing happens to."""
    workdir = tmp_path_factory.mktemp("whole")
    code, output = run(command(workdir, LONG))
    assert code == 0, output
    return workdir


def leftovers(workdir):
    return list(workdir.glob("checkpoints/*tmp*"))


def killed_in_save(workdir, after_ms):
    """What a run leaves that is killed so long after its second save has begun."""
    environment = fault(kill_in_save=1, after_ms=after_ms)
    code, output = run(command(workdir, LONG, module=MODULE), environment=environment)
    assert code == KILLED, output
    assert "Traceback" not in output
    return leftovers(workdir)


def assert_equal_runs(torn, whole):
    assert [row["step"] for row in rows(torn)] == list(range(1, STEPS + 1))
    assert losses(torn) == losses(whole)
    assert_same_variables(torn, whole)


@pytest.mark.slow
def test_twenty_kills_at_random_steps(whole, tmp_path):
    steps = sorted(random.Random(7).sample(range(4, STEPS), 20))
    for step in steps:
        code, output = run(command(tmp_path, LONG, module=MODULE), environment=fault(kill_at_batch=step))
        assert code == KILLED, output
    code, output = run(command(tmp_path, LONG))
    assert code == 0, output
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
def test_kills_while_a_checkpoint_is_being_written(whole, tmp_path):
    torn = 0
    for delay in (0, 1, 3, 6, 10, 15, 20, 30, 40, 60, 90, 150):
        torn += bool(killed_in_save(tmp_path, delay))
    assert torn >= 3  # else hardly a kill came in the middle of a write
    while not killed_in_save(tmp_path, 20):
        pass
    # The steps whose saves were torn are not saved again, so what is left of them has to be cleaned away.
    code, output = run(command(tmp_path, {**LONG, "checkpoint.every": f"{STEPS} steps"}))
    assert code == 0, output
    assert not leftovers(tmp_path)
    assert not (tmp_path / "damaged").exists()  # half-written is not damaged
    assert all(finding.problem is None for finding in inspect_run(tmp_path))
    assert_equal_runs(tmp_path, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_notice_to_go_saves_the_very_step(name, whole, tmp_path):
    seldom = {**LONG, "checkpoint.every": "1000 steps"}
    process = launch(command(tmp_path, seldom))
    wait_for_step(tmp_path, 5)
    process.send_signal(getattr(signal, name))
    code, output = finish(process, seconds=30)  # pods give 30 s
    assert code == EXIT_PREEMPTED, output
    reached = max(losses(tmp_path))
    assert f"Received {name}: saved step {reached}" in output
    assert [finding.step for finding in inspect_run(tmp_path)] == [reached]
    code, output = run(command(tmp_path, seldom))
    assert code == 0, output
    assert f"Resuming at step {reached}" in output
    assert_equal_runs(tmp_path, whole)
