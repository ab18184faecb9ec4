"""Evaluations killed in the middle leave nothing that looks like a result; run again, they find the same numbers."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import sys
import threading

import pytest
from PIL import Image

from mim_jax.evaluation.records import append_rows, read_rows
from tests.processes import command, rows, run
from tests.reliability.faulty_evaluation import MODULE

KILLED = -signal.SIGKILL
TASKS = "knn,linear,reconstruct"
PROBE = {
    "evaluation.batch_size": 16,
    "evaluation.knn.k": "(5,)",
    "evaluation.linear.epochs": 3,
    "evaluation.linear.warmup_epochs": 1,
    "evaluation.linear.batch_size": 16,
}
LOOP = {
    **PROBE,
    "evaluation.tasks": "('knn', 'linear', 'reconstruct')",
    "evaluation.every": "4 steps",
    "evaluation.at_start": False,
}


def evaluation(workdir: pathlib.Path, module: str = "mim_jax.evaluate") -> list[str]:
    settings = [f"--config.{name}={value}" for name, value in PROBE.items()]
    return [sys.executable, "-m", module, f"--workdir={workdir}", f"--task={TASKS}", *settings]


def killed(arguments: list[str], program: str, at: str, skip: int = 0) -> None:
    fault = {"FAULT": json.dumps({"program": program, "at": at, "skip": skip})}
    code, output = run(arguments, environment=fault)
    assert code == KILLED, output


def done(arguments: list[str]) -> None:
    code, output = run(arguments)
    assert code == 0, output


def pictures(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every picture there is, each of them whole."""
    found = {}
    for path in sorted((workdir / "evaluation").glob("*.png")):
        with Image.open(path) as image:
            image.load()
            found[path.name] = image.tobytes()
    return found


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory) -> pathlib.Path:
    """A run whose evaluation nothing interrupts."""
    workdir = shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "run")
    done(evaluation(workdir))
    return workdir


def test_an_evaluation_killed_at_four_moments_leaves_no_result_and_finds_the_same(whole, copied):
    for at in ("features", "probe", "picture"):
        killed(evaluation(copied, MODULE), "evaluate", at)
        assert not (copied / "evaluations.jsonl").exists(), at
        assert pictures(copied) == {}, at
    killed(evaluation(copied, MODULE), "evaluate", "row")
    torn = (copied / "evaluations.jsonl").read_bytes()
    assert torn and not torn.endswith(b"\n")
    kept = read_rows(copied / "evaluations.jsonl")
    done(evaluation(copied))
    found, expected = (read_rows(workdir / "evaluations.jsonl") for workdir in (copied, whole))
    assert [row["task"] for row in expected] == TASKS.split(",")
    results = [{key: row[key] for key in row if key != "files"} for row in found[len(kept) :]]
    assert results == [{key: row[key] for key in row if key != "files"} for row in expected]
    assert all(row["complete"] for row in found)
    assert len((copied / "evaluations.jsonl").read_bytes().splitlines()) == len(found)
    assert pictures(copied) == pictures(whole) != {}


def test_an_evaluation_of_the_loop_killed_is_done_again_and_logged_once(tmp_path):
    done(command(tmp_path / "whole", LOOP))
    for at in ("probe", "picture"):
        killed(command(tmp_path / "torn", LOOP, module=MODULE), "train", at)
        assert not [row for row in rows(tmp_path / "torn") if "knn/top1_k5" in row], at
        assert pictures(tmp_path / "torn") == {}, at
    done(command(tmp_path / "torn", LOOP))
    found, expected = ([row for row in rows(tmp_path / name) if "knn/top1_k5" in row] for name in ("torn", "whole"))
    assert [row["step"] for row in expected] == [4, 8]
    assert found == expected
    assert pictures(tmp_path / "torn") == pictures(tmp_path / "whole") != {}


@pytest.mark.parametrize("torn", ['{"task": "knn", "st', '{"task": "knn"}', "\x00\x00\x00"])
def test_a_torn_last_line_spoils_neither_readers_nor_appends(tmp_path, torn: str):
    path = tmp_path / "evaluations.jsonl"
    append_rows(path, [{"task": "knn", "step": 1}])
    with path.open("a") as file:
        file.write(torn)
    assert read_rows(path) == [{"task": "knn", "step": 1}]
    append_rows(path, [{"task": "linear", "step": 2}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == read_rows(path)
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_rows_of_several_writers_do_not_mix(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    writers = [
        threading.Thread(target=lambda n=n: [append_rows(path, [{"writer": n, "text": "x" * 3000}]) for _ in range(20)])
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read_rows(path)
    assert sorted(row["writer"] for row in found) == sorted([0, 1, 2, 3] * 20)
