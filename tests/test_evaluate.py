import json
import subprocess
import sys

import pytest

from mim_jax.errors import CheckpointError, ConfigError
from mim_jax.evaluate import evaluate, table
from mim_jax.train import train
from tests.tiny import ROOT, tiny_config

SMALL = {
    "image_size": 16,
    "model.depth": 1,
    "evaluation.tasks": ("knn", "statistics", "reconstruct"),
    "evaluation.every": "2 steps",
    "evaluation.knn.k": (5,),
    "duration": "2 steps",
    "checkpoint.every": "2 steps",
    "schedule.warmup": "1 steps",
    "log.progress": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of two steps that was evaluated from its loop."""
    workdir = tmp_path_factory.mktemp("run")
    train(tiny_config("mae", SMALL), workdir)
    return workdir


def rows(run):
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def logged(run, step):
    """What the loop's evaluation at `step` found."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {k: v for row in lines if row["step"] == step for k, v in row.items() if k.startswith(("knn/", "stat"))}


def test_it_finds_what_the_loop_found(run):
    results = evaluate(run, ("knn", "statistics"))
    numbers = {f"{task}/{k}": v for task, result in results.items() for k, v in result.metrics.items()}
    assert numbers == pytest.approx(logged(run, 2), rel=1e-5)
    row = rows(run)[-2]
    assert (row["task"], row["step"], row["random_init"], row["complete"]) == ("knn", 2, False, True)
    assert row["metrics"] == results["knn"].metrics
    assert row["settings"]["k"] == [5]
    assert row["settings"]["source"] == "synthetic:64"


def test_random_init_is_where_the_run_began(run):
    results = evaluate(run, ("knn", "reconstruct"), random_init=True)
    assert results["knn"].metrics["top1_k5"] == pytest.approx(logged(run, 0)["knn/top1_k5"])
    (path,) = results["reconstruct"].files
    assert path == run / "evaluation" / "random_init" / "reconstructions_00000000.png"
    assert path.is_file()
    assert rows(run)[-1]["random_init"] is True
    assert (run / "evaluation" / "reconstructions_00000002.png").is_file()  # of the loop


def test_overrides_change_the_evaluation_and_are_recorded(run):
    results = evaluate(run, ("knn",), overrides={"evaluation.knn.k": (1, 3), "evaluation.knn.max_train_examples": 20})
    assert set(results["knn"].metrics) == {"top1_k1", "top1_k3"}
    assert rows(run)[-1]["settings"]["max_train_examples"] == 20
    assert rows(run)[-1]["complete"] is False
    assert "(on a part of the data)" in table(results)


def test_the_trained_model_cannot_be_overridden(run):
    with pytest.raises(ConfigError, match="model.depth cannot be changed in an evaluation"):
        evaluate(run, ("knn",), overrides={"model.depth": 2})


def test_requests_that_cannot_be_fulfilled(run, tmp_path):
    with pytest.raises(CheckpointError, match="no config.json"):
        evaluate(tmp_path, ("knn",))
    with pytest.raises(CheckpointError, match="no checkpoint 1"):
        evaluate(run, ("knn",), step=1)
    with pytest.raises(ConfigError, match="leave out --step or --random_init"):
        evaluate(run, ("knn",), step=2, random_init=True)
    with pytest.raises(ConfigError, match="known: accuracy, coding_rate, knn"):
        evaluate(run, ("kn",))


def command(*arguments):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mim_jax.evaluate", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_command_line(run):
    done = command(
        f"--workdir={run}", "--task=statistics", "--step=2", "--config.evaluation.statistics.max_examples=30"
    )
    assert done.returncode == 0, done.stderr
    assert "statistics/effective_rank" in done.stdout
    assert rows(run)[-1]["details"] == {"examples": 30}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--task=nonsense",),
            "error: There is no evaluation task 'nonsense'; known: accuracy, coding_rate, knn, linear",
        ),
        (("--task=knn", "--config.evaluation.knn.kk=3"), "did you mean 'evaluation.knn.k'"),
        (("--task=accuracy",), "error: evaluation task 'accuracy' needs an objective that classifies"),
    ],
)
def test_mistakes_end_the_command_with_one_sentence(run, arguments, message):
    done = command(f"--workdir={run}", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
