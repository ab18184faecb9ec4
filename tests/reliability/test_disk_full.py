"""The disk fills up: a limit on the size of files stands in for it, which the kernel enforces on every write."""

import pytest

from mim_jax.inspect import inspect_run
from tests.processes import command, losses, rows, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run nothing happens to."""
    workdir = tmp_path_factory.mktemp("whole")
    code, output = run(command(workdir))
    assert code == 0, output
    return workdir


def run_with_limit(arguments, kibibytes):
    return run(["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "bash", *arguments])


def last_line(output):
    """The sentence the run ends with; Orbax's threads may add complaints of their own to the output before it."""
    return next(line for line in reversed(output.splitlines()) if "error: " in line)


@pytest.fixture
def begun(tmp_path):
    """A run that has reached step 4 and was told to stop there."""
    code, output = run(command(tmp_path, {"duration": "4 steps"}))
    assert code == 0, output
    return tmp_path


def assert_goes_on(workdir, whole):
    assert [finding.problem for finding in inspect_run(workdir)][-1] is None
    code, output = run(command(workdir, {}, "--allow_config_change"))
    assert code == 0, output
    assert "Resuming at step 4" in output
    assert [row["step"] for row in rows(workdir)] == list(range(1, 9))
    assert sorted(losses(workdir)) == sorted(losses(whole))


def test_a_checkpoint_cannot_be_written(begun, whole):
    code, output = run_with_limit(command(begun, {}, "--allow_config_change"), 10)
    assert code == 2, output
    assert "Saving a checkpoint under" in last_line(output) and "earlier ones are intact" in last_line(output)
    assert [finding.step for finding in inspect_run(begun)] == [2, 4]
    assert_goes_on(begun, whole)


def test_metrics_cannot_be_written(begun, whole):
    changes = {"duration": "400 steps", "checkpoint.every": "400 steps"}
    code, output = run_with_limit(command(begun, changes, "--allow_config_change"), 20)
    assert code == 1, output
    assert "File too large" in last_line(output) and "start the same command again" in last_line(output)
    assert_goes_on(begun, whole)


def test_pictures_cannot_be_written(begun, whole):
    changes = {"evaluation.every": "2 steps", "evaluation.tasks": "('reconstruct',)", "checkpoint.every": "400 steps"}
    code, output = run_with_limit(command(begun, changes, "--allow_config_change"), 10)
    assert code == 1, output
    assert "File too large" in last_line(output)
    assert not list((begun / "evaluation").glob("*.png"))
    assert_goes_on(begun, whole)
