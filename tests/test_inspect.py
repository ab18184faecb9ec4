import shutil

import pytest

from mim_jax import inspect
from mim_jax.errors import CheckpointError
from mim_jax.inspect import EXIT_UNSOUND, inspect_run, main
from mim_jax.training.loop import Trainer
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints 4 and 8."""
    workdir = tmp_path_factory.mktemp("finished")
    Trainer(tiny_config("ijepa"), workdir).run()
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(autouse=True)
def loggers_as_they_are(monkeypatch):
    monkeypatch.setattr(inspect, "show_own_logs_only", lambda: None)


def damage(workdir, step):
    (workdir / "checkpoints" / str(step) / "variables" / "manifest.ocdbt").unlink()


def test_every_array_of_every_checkpoint_is_read(finished):
    findings = inspect_run(finished)
    assert [(finding.step, finding.problem) for finding in findings] == [(4, None), (8, None)]
    assert findings[0].num_arrays == findings[1].num_arrays > 50
    assert findings[0].num_bytes > 10_000


def test_the_table_says_where_a_resume_starts(copied, capsys):
    damage(copied, 8)
    assert main(["inspect", str(copied)]) == 0
    header, four, eight = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", "saved", "(UTC)", "size", "arrays", "state"]
    assert four.strip().startswith("4  20") and four.endswith("sound, a resume starts here")
    assert eight.strip().startswith("8") and "Checkpoint 8" in eight and "resume" not in eight


def test_nothing_is_changed(copied):
    damage(copied, 8)
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    inspect_run(copied)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_exit_codes_tell_unsound_runs_from_no_runs(copied, tmp_path, capsys):
    damage(copied, 4)
    damage(copied, 8)
    assert main(["inspect", str(copied)]) == EXIT_UNSOUND
    assert "nothing to start from" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "typo")]) == 2
    assert "There are no checkpoints under" in capsys.readouterr().err
    assert main(["inspect"]) == 2
    assert "python -m mim_jax.inspect RUN" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        inspect_run(tmp_path / "typo")
