"""Checkpoints that went bad on disk: named, set aside, and the one before is used."""

import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest

from mim_jax.errors import CheckpointError
from mim_jax.inspect import inspect_run
from mim_jax.training import checkpoint
from mim_jax.training.checkpoint import Checkpointer, load_run
from mim_jax.training.loop import Trainer
from tests.processes import assert_same_variables, losses
from tests.reliability.conftest import run_to
from tests.tiny import tiny_config


def data_files(workdir: pathlib.Path, step: int, item: str = "variables") -> list[pathlib.Path]:
    """Largest first."""
    files = (file for file in (workdir / "checkpoints" / str(step) / item).rglob("d/*") if file.is_file())
    return sorted(files, key=lambda file: -file.stat().st_size)


def truncate(workdir, step):
    for file in data_files(workdir, step):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(workdir, step):
    for file in data_files(workdir, step):
        file.write_bytes(b"")


def remove(workdir, step):
    for file in data_files(workdir, step):
        file.unlink()


def without_our_checks(workdir: pathlib.Path, step: int) -> list[np.ndarray] | None:
    """Every array as Orbax alone restores it; None where it notices damage itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_verify", lambda *_: None)
        try:
            return [np.asarray(leaf) for leaf in jax.tree.leaves(Checkpointer(workdir, read_only=True).arrays(step))]
        except CheckpointError:
            return None


def flip_one_bit(workdir, step):
    """Flips a bit that Orbax does not miss: it restores other numbers without a word."""
    sound = without_our_checks(workdir, step)
    for file in data_files(workdir, step, "optimizer"):
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        file.write_bytes(flipped)
        read = without_our_checks(workdir, step)
        if read is not None and not all(np.array_equal(a, b) for a, b in zip(read, sound, strict=True)):
            return
        file.write_bytes(content)
    raise AssertionError("No bit was found whose change Orbax restores in silence.")


def garble_metadata(workdir, step):
    (workdir / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")


def lose_an_item(workdir, step):
    shutil.rmtree(workdir / "checkpoints" / str(step) / "optimizer")


DAMAGES = [truncate, empty, remove, flip_one_bit, garble_metadata, lose_an_item]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_used_and_the_run_ends_the_same(damage, finished, copied, caplog):
    damage(copied, 6)
    assert [finding.problem is None for finding in inspect_run(copied)] == [True, True, False]
    with caplog.at_level(logging.WARNING):
        run_to(6, copied)
    assert "Checkpoint 6 is damaged and set aside" in caplog.text
    assert (copied / "damaged" / "6").is_dir()
    assert losses(copied) == losses(finished)
    assert_same_variables(copied, finished)


def test_with_none_left_the_run_refuses_to_start_afresh(copied):
    for step in (2, 4, 6):
        truncate(copied, step)
    before = (copied / "metrics.jsonl").read_text()
    for _ in range(2):  # nor when it is tried again, the damaged ones now out of the way
        with pytest.raises(CheckpointError, match=r"No sound checkpoint is left .* another workdir or delete this one"):
            run_to(6, copied)
    assert (copied / "metrics.jsonl").read_text() == before


def test_an_empty_directory_named_like_a_step_is_no_checkpoint(copied, caplog):
    (copied / "checkpoints" / "9").mkdir()
    with caplog.at_level(logging.INFO):
        run_to(6, copied)
    assert "an empty directory is no checkpoint" in caplog.text
    assert "Resuming at step 6" in caplog.text


def test_no_save_is_skipped_in_silence(copied, caplog):
    state = run_to(6, copied)
    checkpointer = Checkpointer(copied, asynchronous=False)
    with caplog.at_level(logging.WARNING):
        checkpointer.save(state, {"config": {}})
    assert "Checkpoint 6 exists" in caplog.text
    with pytest.raises(CheckpointError, match="newer steps exist"):
        checkpointer.save(state.replace(step=state.step - 1), {"config": {}})
    checkpointer.close()


def test_a_failed_background_save_surfaces_within_one_log_interval(tmp_path):
    config = tiny_config("mae", {"duration": "40 steps", "checkpoint.every": "10 steps", "log.every": "2 steps"})
    save = Checkpointer.save

    def save_where_something_is_in_the_way(checkpointer, state, meta):
        save(checkpointer, state, meta)
        (checkpointer.directory / str(int(state.step)) / "in the way").mkdir(parents=True)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError, match="Saving a checkpoint under"):
        patch.setattr(Checkpointer, "save", save_where_something_is_in_the_way)
        Trainer(config, tmp_path).run()
    assert 10 <= max(losses(tmp_path)) <= 20  # the next save would have been at 20


def test_a_flipped_bit_is_told_from_an_unreadable_file(copied):
    flip_one_bit(copied, 6)
    truncate(copied, 4)
    problems = [finding.problem for finding in inspect_run(copied)]
    assert problems[0] is None
    assert "cannot be read" in problems[1] or "no readable metadata" in problems[1]
    assert "is damaged: 1 of" in problems[2] and "the first is optimizer/" in problems[2]


def test_a_damaged_checkpoint_is_not_evaluated(copied):
    truncate(copied, 6)
    with pytest.raises(CheckpointError, match=r"Checkpoint 6 under .* cannot be read"):
        load_run(copied)
    assert load_run(copied, step=4).step == 4
