"""The demo from beginning to end on synthetic images, and what it says."""

from __future__ import annotations

import importlib
import json
import pathlib
import types

import jax
import pytest
from ml_collections import ConfigDict
from PIL import Image

import mim_jax

ROOT = pathlib.Path(__file__).resolve().parents[2]

CHANGES = {
    "image_size": 8,
    "batch_size": 8,
    "duration": "4 steps",
    "schedule.warmup": "1 steps",
    "log.every": "2 steps",
    "log.progress": False,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "decoder.width": 8,
    "data.source": "synthetic:64",
    "data.train_split": "train",
    "data.eval_split": "auto",
    "evaluation.batch_size": 16,
    "evaluation.knn.max_train_examples": None,
    "evaluation.linear.epochs": 2,
    "evaluation.linear.warmup_epochs": 0.0,
    "evaluation.linear.batch_size": 16,
}


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))  # as when it is run as a script
    return importlib.import_module("demo")


@pytest.fixture
def config(demo: types.ModuleType) -> ConfigDict:
    return mim_jax.load_config(str(demo.CONFIG), CHANGES)


def test_leaves_what_it_promises_and_is_not_run_twice(
    demo: types.ModuleType, config: ConfigDict, tmp_path: pathlib.Path
):
    assert demo.finished(config, tmp_path) is None
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its integer count with floats
        summary = demo.run(config, tmp_path, train_split="train")
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["images_per_second"] > 0
    assert summary["loss_first"] > 0 and summary["loss_last"] > 0
    for name in ("knn_top1", "linear_top1"):
        assert summary[name].keys() == {"pretrained", "random_init"}
        assert all(0 <= value <= 100 for value in summary[name].values())
    for name in demo.PICTURES:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 50
    assert {path.name for path in tmp_path.iterdir()} >= {"metrics.jsonl", "tensorboard", "checkpoints", "config.json"}
    assert demo.finished(config, tmp_path) == summary
    config.seed = 1
    assert demo.finished(config, tmp_path) is None


def test_the_report_has_the_numbers_and_fits_a_terminal(demo: types.ModuleType):
    summary = {
        "steps": 600,
        "images_per_second": 812.3,
        "loss_first": 0.98765,
        "loss_last": 0.23456,
        "knn_top1": {"pretrained": 80.15, "random_init": 70.25},
        "linear_top1": {"pretrained": 84.5, "random_init": 78.75},
    }
    text = demo.report(summary, pathlib.Path("runs/demo"))
    assert max(map(len, text.splitlines())) <= 80
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert rows["gain"] == ["gain", "+9.9", "+5.8"]
    assert rows["pre-trained"][1:] == ["80.2", "%", "84.5", "%"]
    assert "600 steps, 812 images/s, loss 0.988 -> 0.235" in text
    assert "runs/demo/reconstructions.png" in text
