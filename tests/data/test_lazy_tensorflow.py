"""What must run without TensorFlow, and what TensorFlow must leave alone."""

import pathlib
import subprocess
import sys

import pytest

from mim_jax.data.lazy_tensorflow import import_tensorflow

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCK = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "array_record"):
    sys.modules[name] = None
import numpy as np
from mim_jax import data
from tests.data.make import config, write_folder, encode, photo
"""


def run_without_tensorflow(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCK + code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_synthetic_data():
    code = """
run = config("synthetic:100", rand_augment="rand-m9", random_erasing=0.5)
print(data.data_info(run).num_classes, next(data.train_batches(run))["image"].shape)
print(sum(batch["valid"].sum() for batch in data.eval_batches(run, batch_size=30)))
"""
    assert run_without_tensorflow(code) == "10 (8, 16, 16, 3)\n100"


def test_folders_and_arrays_give_the_same_pixels(tmp_path):
    code = """
import pathlib
root = pathlib.Path(sys.argv[1])
if not root.exists():
    write_folder(root, 8, form="JPEG", size=40)
    (root / "class0" / "photo.jpg").write_bytes(encode(photo(), "JPEG"))
run = config(f"folder:{root}", image_size=32)
batch = next(data.train_batches(run))
print(repr(batch["image"].tobytes()[:4000]), batch["label"])
"""
    root = str(tmp_path / "images")
    without = run_without_tensorflow(code, root)
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.replace("sys.modules[name] = None", "pass") + code, root],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == without


def test_tfds_says_what_is_missing():
    code = """
try:
    data.data_info(config("tfds:fashion_mnist"))
except ValueError as error:
    print(error)
"""
    message = run_without_tensorflow(code)
    assert message.startswith("data.source 'tfds:fashion_mnist' needs tensorflow-datasets, which cannot be imported")
    assert "pip install tensorflow-datasets" in message


def test_importing_the_package_does_not_import_tensorflow():
    code = "import sys, mim_jax, mim_jax.data; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_tensorflow_keeps_off_the_gpus():
    tf = import_tensorflow()
    if tf is None:
        pytest.skip("TensorFlow is not installed")
    assert tf.config.get_visible_devices("GPU") == []
