import json
import logging
import signal

import numpy as np
import pytest

from mim_jax.errors import CheckpointError, ConfigError, TrainingError
from mim_jax.training.checkpoint import Checkpointer, load_run
from mim_jax.training.loop import Trainer
from mim_jax.training.preemption import EXIT_PREEMPTED
from mim_jax.training.writers import Writers
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
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of eight steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    Trainer(tiny_config("mae"), workdir).run()
    return workdir


def test_a_run_leaves_its_config_metrics_and_checkpoints(finished):
    assert [row["step"] for row in rows(finished)] == list(range(1, 9))
    assert Checkpointer(finished, read_only=True).steps() == [4, 8]
    assert json.loads((finished / "config.json").read_text())["method"] == "mae"
    last = rows(finished)[-1]
    assert {"loss", "terms/reconstruction", "lr", "grad_norm", "param_norm", "epoch"} <= set(last)
    assert {"images_per_second", "step_seconds", "data_wait_share", "flops_per_second", "peak_share"} <= set(last)


@pytest.mark.parametrize(("method", "views", "reads"), [("mae", "random", "one view"), ("cropmae", "one", "two views")])
def test_views_that_the_method_does_not_read_are_refused_before_anything_is_compiled(method, views, reads, tmp_path):
    with pytest.raises(ConfigError, match=f"{method} reads {reads} of each example, but data.views is '{views}'"):
        Trainer(tiny_config(method, {"data.views": views}), tmp_path)
    Trainer(tiny_config(method, {"data.views": views}), tmp_path, batches=iter)  # which brings whatever it likes


def test_running_it_again_does_nothing(finished, caplog):
    before = (finished / "metrics.jsonl").read_text()
    with caplog.at_level(logging.INFO):
        Trainer(tiny_config("mae"), finished).run()
    assert "already complete" in caplog.text
    assert (finished / "metrics.jsonl").read_text() == before


def test_resuming_from_the_middle_gives_the_same_run(finished, tmp_path, monkeypatch):
    write = Writers.write

    def interrupt(writers, step, scalars):
        write(writers, step, scalars)
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Writers, "write", interrupt)
        Trainer(tiny_config("mae"), tmp_path).run()
    Trainer(tiny_config("mae"), tmp_path).run()
    assert losses(tmp_path) == losses(finished)
    assert_same_variables(tmp_path, finished)


def test_batches_of_your_own_are_trained_on(tmp_path):
    tf = pytest.importorskip("tensorflow")
    images = np.random.default_rng(0).normal(size=(64, 28, 28, 1)).astype(np.float32)

    def batches(start_step):
        return (
            tf.data.Dataset.from_tensor_slices({"image": images})
            .repeat()
            .batch(16)
            .skip(start_step)
            .as_numpy_iterator()
        )

    Trainer(tiny_config("mae"), tmp_path, batches=batches).run()
    assert list(losses(tmp_path)) == list(range(1, 9))


def test_load_run_names_what_is_missing(finished, tmp_path):
    assert load_run(finished).step == 8
    with pytest.raises(CheckpointError, match=r"no checkpoint 5; it has \[4, 8\]"):
        load_run(finished, step=5)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_run(tmp_path)


def test_init_from_takes_over_a_run(finished, tmp_path, caplog):
    config = tiny_config("mae", {"init_from": str(finished), "init_parts": ("encoder",)})
    with caplog.at_level(logging.INFO):
        Trainer(config, tmp_path).run()
    assert "Initialised from" in caplog.text and "left as initialised" in caplog.text
    assert losses(tmp_path)[1] < rows(finished)[0]["loss"]


def test_a_non_finite_loss_stops_with_the_state_saved(tmp_path):
    config = tiny_config("mae", {"optimizer.lr": 1e30, "schedule.warmup": "0 steps"})
    with pytest.raises(TrainingError, match=r"is not finite.*optimizer\.clip_norm"):
        Trainer(config, tmp_path).run()
    (report,) = (tmp_path / "diagnostics").glob("skipped_*.json")
    content = json.loads(report.read_text())
    assert content["positions"][1] - content["positions"][0] == 16
    assert list((tmp_path / "diagnostics").glob("step_*/checkpoints/*/variables"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batch_size": 20}, "batch_size 20"),
        ({"duration": "forever"}, "duration"),
        ({"optimizer.name": "adam"}, r"optimizer\.name"),
        ({"schedule.warmup": "100 steps"}, r"schedule\.warmup"),
        ({"nonfinite": "ignore"}, "nonfinite"),
        ({"mesh.tensor": 3}, "mesh"),
        ({"mask_ratio": 1.5}, "mask_ratio"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(change, match, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(ConfigError, match=match):
        Trainer(tiny_config("mae", change), workdir)
    assert not workdir.exists()


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be a directory"):
        Trainer(tiny_config("mae"), tmp_path / "file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimizer.lrr=1"], "There is no config key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        (["--config.model.depth=two"], "model.depth must be of type int, not str ('two')."),
        (["--config.evaluation.tasks=knn", "stray"], "Unexpected argument 'stray'."),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(arguments, message, tmp_path):
    code, output = run([*command(tmp_path / "run"), *arguments])
    assert code == 2
    assert output.strip().splitlines()[-1].startswith(f"error: {message[:60]}")
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_sigkill_and_sigterm_are_survived_bit_for_bit(tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    steps = {"duration": "24 steps"}
    code, output = run(command(whole, steps))
    assert code == 0, output

    process = launch(command(torn, steps))
    wait_for_step(torn, 5)
    process.send_signal(signal.SIGKILL)
    finish(process)
    killed_at = max(losses(torn))
    assert killed_at < 24

    process = launch(command(torn, steps))
    wait_for_step(torn, killed_at + 3)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code in (EXIT_PREEMPTED, 0), output  # 0: it had just finished

    code, output = run(command(torn, steps))
    assert code == 0, output
    assert losses(torn) == losses(whole)
    assert [row["step"] for row in rows(torn)] == list(range(1, 25))
    assert_same_variables(torn, whole)
