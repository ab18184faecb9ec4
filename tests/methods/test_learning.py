"""The three poles learn something from real images: a k-NN on their features beats the same one before training.

For all methods, from several seeds, `tools/reproduce.py` does what this does (docs/reproduction).
"""

import json
import pathlib

import jax
import numpy as np
import pytest

import mim_jax
from mim_jax.config import override
from mim_jax.data.sources.arrays import read_idx
from mim_jax.errors import DataError
from mim_jax.train import train
from tests.tiny import ROOT
from tools import prepare_data

POLES = {"mae": 300, "simmim": 150, "ijepa": 300}  # steps that are enough
TEACHER = {"ijepa": {"ema_momentum": 0.98}}  # which follows within so few
OVERRIDES = {
    "model.depth": 2,
    "model.width": 64,
    "model.heads": 2,
    "batch_size": 64,
    "schedule.warmup": "30 steps",
    "optimizer.lr": 2e-3,
    "log.every": "50 steps",
    "log.tensorboard": False,
    "evaluation.tasks": ("knn",),
}


@pytest.fixture(scope="session")
def fashion_mnist(tmp_path_factory) -> str:
    """A data source: 6,000 images of Fashion-MNIST for training and 2,000 for testing."""
    file = tmp_path_factory.mktemp("fashion_mnist") / "subset.npz"
    try:
        images, labels = raw_fashion_mnist()
    except DataError as error:
        pytest.skip(f"Fashion-MNIST cannot be had here: {error}")
    train, test = slice(0, 6000), slice(6000, 8000)
    np.savez(
        file, train_image=images[train], train_label=labels[train], test_image=images[test], test_label=labels[test]
    )
    return f"npz:{file}"


def raw_fashion_mnist() -> tuple[np.ndarray, np.ndarray]:
    """The first training images `[n, 28, 28, 1]` and labels, from the system or from Debian's package."""
    if prepare_data.SYSTEM_FOLDER.is_dir():
        return read_pair(prepare_data.SYSTEM_FOLDER)
    with prepare_data.debian_package() as folder:
        return read_pair(folder)


def read_pair(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(folder / "train-images-idx3-ubyte.gz")[:8000]
    return images[..., None], read_idx(folder / "train-labels-idx1-ubyte.gz")[:8000]


@pytest.fixture
def optimised():
    """Unlike other tests these run for longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("method", POLES)
def test_training_lowers_the_loss_and_beats_random_features(method, fashion_mnist, tmp_path):
    config = mim_jax.load_config(str(ROOT / "configs" / f"{method}_fashion_mnist.py"))
    length = dict.fromkeys(("duration", "checkpoint.every", "evaluation.every"), f"{POLES[method]} steps")
    for name, value in {**OVERRIDES, **TEACHER.get(method, {}), **length, "data.source": fashion_mnist}.items():
        override(config, name, value)
    train(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    before, after = (row["knn/top1_k20"] for row in rows if "knn/top1_k20" in row)
    assert after > before + 2.0, (before, after)
