"""A run that stops moving ends by itself, and says where it stood."""

import time

import pytest

from mim_jax.errors import ConfigError
from mim_jax.training import watchdog
from mim_jax.training.loop import Trainer
from mim_jax.training.watchdog import EXIT_STALLED, Watchdog
from tests.processes import command, run
from tests.reliability.faulty import MODULE, fault
from tests.tiny import tiny_config


def test_a_stalled_run_dumps_its_stacks_and_exits(tmp_path):
    arguments = command(tmp_path, {"watchdog_minutes": 0.25}, module=MODULE)
    code, output = run(arguments, environment=fault(stall_at_batch=6))
    assert code == EXIT_STALLED, output
    assert "No step has ended for 15 s (watchdog_minutes): ending the process." in output
    for stacks in (output, (tmp_path / "diagnostics" / "stacks_process0.txt").read_text()):
        assert "faulty.py" in stacks and "in _batches" in stacks  # the thread that hangs
        assert "loop.py" in stacks and "in _next_batch" in stacks  # the one that waits for it
    code, output = run(command(tmp_path))
    assert code == 0, output


def test_evaluations_are_no_stall(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog.os, "_exit", pytest.fail)
    with Watchdog(0.2, tmp_path / "stacks.txt") as dog:
        with dog.paused():
            time.sleep(0.5)
        dog.beat()
    assert not (tmp_path / "stacks.txt").exists()


def test_it_can_be_switched_off_but_not_set_to_nonsense(tmp_path):
    with Watchdog(None, tmp_path / "stacks.txt"):
        pass
    with pytest.raises(ConfigError, match="watchdog_minutes is 0; it must be positive, or None"):
        Trainer(tiny_config("mae", {"watchdog_minutes": 0.0}), tmp_path)
