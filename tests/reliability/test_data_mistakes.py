"""Data that cannot be trained on is refused in one sentence before anything is compiled or written."""

from __future__ import annotations

import gzip
import pathlib
import struct
import zipfile

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import mim_jax
from mim_jax.errors import ConfigError, DataError
from mim_jax.training.loop import Trainer
from tests.data.make import write_folder
from tests.tiny import tiny_config

IMAGES = np.zeros((20, 28, 28), np.uint8)


def npz(root: pathlib.Path, **arrays: np.ndarray) -> str:
    np.savez(root / "a.npz", **arrays)
    return f"npz:{root}/a.npz"


def labelled(root: pathlib.Path, labels: np.ndarray) -> str:
    return npz(root, image=IMAGES, label=labels)


def empty_folder(root: pathlib.Path) -> str:
    (root / "notes.txt").write_text("no image")
    return f"folder:{root}"


def empty_idx(root: pathlib.Path, content: bytes = struct.pack(">HBBIII", 0, 8, 3, 0, 28, 28)) -> str:
    (root / "train-images-idx3-ubyte").write_bytes(content)
    return f"idx:{root}"


def npz_of_terabytes(root: pathlib.Path) -> str:
    source = npz(root, image=IMAGES)
    with zipfile.ZipFile(root / "a.npz", "a") as archive:
        archive.writestr("empty", "")  # so that the list of contents is written anew
        archive.getinfo("image.npy").file_size = 2**42
    return source


def idx_of_terabytes(root: pathlib.Path) -> str:
    source = empty_idx(root, gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 2**22, 2**10, 2**10)))
    with open(root / "train-images-idx3-ubyte", "r+b") as file:
        file.truncate(2**33)  # takes no room on the disk
    return source


def few(root: pathlib.Path) -> str:
    write_folder(root, 7)
    return f"folder:{root}"


def split_folder(root: pathlib.Path) -> str:
    write_folder(root / "train", 20)
    write_folder(root / "val", 6, classes=3)
    return f"folder:{root}"


NUMBERS = np.arange(20)
# Name: what makes the source, other changes to the config, the error, and what its sentence says.
MISTAKES = {
    "an empty folder": (empty_folder, {}, DataError, r"{root} holds no image; looked for files ending in \.jpg"),
    "no folder": (lambda root: f"folder:{root}/gone", {}, DataError, "no folder {root}/gone; data.source must name"),
    "an empty npz": (npz, {}, DataError, r"{root}/a.npz holds the arrays \[\], none of which is called image"),
    "an npz of nothing": (lambda root: npz(root, image=IMAGES[:0]), {}, DataError, r"a.npz .train. is empty"),
    "an empty file": (lambda root: empty_idx(root, b""), {}, DataError, "{root}/train-images-.* is not an IDX file"),
    "an empty idx": (empty_idx, {}, DataError, r"idx:{root} .train. is empty: .* \(0, 28, 28"),
    "an idx of petabytes": (
        lambda root: empty_idx(root, struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**10, 2**10)),
        {},
        DataError,
        "{root}/train-images-.* announces an array .* too short to hold",
    ),
    "an idx of terabytes": (
        idx_of_terabytes,
        {},
        DataError,
        "{root}/train-images-.* unpacks to 4,398,046,511,104 bytes",
    ),
    "an npz of terabytes": (npz_of_terabytes, {}, DataError, r"{root}/a\.npz unpacks to 4,398,046,511,104 bytes"),
    "a negative label": (
        lambda root: labelled(root, NUMBERS - 3),
        {},
        DataError,
        "Label -3 of example 0 of npz:{root}",
    ),
    "a huge label": (lambda root: labelled(root, NUMBERS + 2**40), {}, DataError, "Label 1099511627776 of example 0"),
    "a label too many": (
        lambda root: labelled(root, NUMBERS),
        {"num_classes": 10},
        ConfigError,
        "num_classes is 10, but npz:{root}/a.npz has 20 classes",
    ),
    "too few labels": (
        lambda root: labelled(root, NUMBERS[:9]),
        {},
        DataError,
        r"20 images but labels of .*\(9,\)",
    ),
    "float labels": (
        lambda root: labelled(root, NUMBERS / 2),
        {},
        DataError,
        "labels of npz:.* are float64; they",
    ),
    "a split misspelt": (
        lambda root: "synthetic:64",
        {"data.train_split": "trian"},
        DataError,
        "no split 'trian'; set data.train_split and data.eval_split to one of train, test",
    ),
    "an eval split misspelt": (
        lambda root: "synthetic:64",
        {"data.eval_split": "tset"},
        DataError,
        "no split 'tset'; set data.train_split and data.eval_split to one of train, test",
    ),
    "a source misspelt": (
        lambda root: f"foldr:{root}",
        {},
        ConfigError,
        "data.source is .*; write tfds:NAME",
    ),
    "a class that training lacks": (split_folder, {}, DataError, "{root}/val has the class folder 'class2', which the"),
}


@pytest.fixture
def compiled():
    """What JAX has compiled since the test began."""
    events: list[str] = []

    def listen(event: str, *_: object, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_the_listener_hears_a_compilation(compiled):
    jax.jit(lambda x: x + 12345.0)(np.float32(1))
    assert compiled


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_before_anything_is_done(mistake, tmp_path, compiled):
    make, changes, error, message = MISTAKES[mistake]
    root = tmp_path / "data"
    root.mkdir()
    changes = {"data.source": make(root), "data.eval_split": "auto", **changes}
    with pytest.raises(error, match=message.format(root=root)) as caught:
        Trainer(run_config(changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not compiled
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_a_batch(tmp_path, compiled):
    config = run_config({"data.source": few(tmp_path / "data"), "data.eval_split": None, "channels": 3})
    with pytest.raises(DataError, match=f"folder:{tmp_path}/data has 7 images, fewer than batch_size 16; lower"):
        Trainer(config, tmp_path / "run")
    assert not compiled
    assert not (tmp_path / "run").exists()


def run_config(changes: dict) -> ConfigDict:
    if "num_classes" not in changes:
        return tiny_config("mae", changes)
    config = mim_jax.default_config(task="classification")
    config.batch_size = 16
    for name, value in changes.items():
        mim_jax.config.override(config, name, value)
    return config
