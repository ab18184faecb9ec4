"""Routes to Fashion-MNIST, on a few images of it."""

import gzip
import pathlib
import runpy
import sys
import types

import numpy as np
import pytest

from mim_jax import data
from mim_jax.errors import DataError
from tests.data.make import config
from tests.data.sources.test_arrays import idx
from tests.data.sources.test_tfds import COUNT, TinyPictures

tfds = pytest.importorskip("tensorflow_datasets")
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools" / "prepare_data.py"


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The script's functions, expecting 30 + 10 images, with no system folder, no apt-get and no internet."""
    module = types.ModuleType("prepare_data")
    monkeypatch.setitem(sys.modules, "prepare_data", module)
    module.__dict__.update(runpy.run_path(str(SCRIPT), run_name="prepare_data"))
    scope = module.main.__globals__
    shapes = {
        name: (30 if name[0] == "t" and name[1] == "r" else 10, *shape[1:])
        for name, shape in scope["IDX_SHAPES"].items()
    }
    monkeypatch.setitem(scope, "IDX_SHAPES", shapes)
    monkeypatch.setitem(scope, "SYSTEM_FOLDER", tmp_path / "system")
    from tensorflow_datasets.image_classification import mnist

    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 30)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 10)
    monkeypatch.setattr(mnist.FashionMNIST, "URL", "http://localhost:9/")
    monkeypatch.setenv("PATH", str(tmp_path / "no programs here"))
    return module


@pytest.fixture
def idx_dir(tmp_path):
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return folder


def read(data_dir: pathlib.Path) -> np.ndarray:
    run = config("tfds:fashion_mnist", data_dir=str(data_dir), channels=1, crop="none", image_size=28)
    run.data.update(mean=(0.0,), std=(1.0,))
    (batch,) = data.eval_batches(run, "test", batch_size=10)
    assert sorted(batch["label"].tolist()) == list(range(10))
    return np.rint(batch["image"] * 255).astype(np.uint8)


def test_idx_files(tool, idx_dir, tmp_path, capsys):
    root = tmp_path / "tfds"
    arguments = ["fashion_mnist", "--data-dir", str(root), "--idx-dir", str(idx_dir)]
    assert tool.main(arguments) == 0
    assert f"fashion_mnist is ready in {root}/fashion_mnist/3.0.1." in capsys.readouterr().out
    assert [path.name for path in root.iterdir()] == ["fashion_mnist"]  # nothing is left of the staging area
    pixels = read(root)
    source = gzip.decompress((idx_dir / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    source = np.frombuffer(source, np.uint8).reshape(10, 28, 28, 1)
    assert {image.tobytes() for image in pixels} == {image.tobytes() for image in source}
    assert len(tfds.load("fashion_mnist", data_dir=str(root), split="train")) == 30
    builder = tfds.builder_from_directory(str(root / "fashion_mnist" / "3.0.1"))
    assert len(builder.as_data_source(split="train")) == 30

    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert tool.main(["fashion_mnist", "--data-dir", str(root)]) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_system_folder(tool, idx_dir, tmp_path, capsys):
    idx_dir.rename(tmp_path / "system")
    assert tool.main(["fashion_mnist", "--data-dir", str(tmp_path / "tfds")]) == 0
    assert f"Preparing Fashion-MNIST from {tmp_path}/system" in capsys.readouterr().out


def test_the_debian_package(tool, idx_dir, tmp_path, monkeypatch):
    """With `apt-get` and `dpkg` replaced by scripts that do what the real ones do."""
    programs = tmp_path / "programs"
    programs.mkdir()
    unpacked = "unpacked" + str(tmp_path / "system")
    (programs / "apt-get").write_text('#!/bin/sh\n[ "$1 $2" = "download dataset-fashion-mnist" ] && : > d_1_all.deb\n')
    (programs / "dpkg").write_text(
        f'#!/bin/sh\n[ "$1" = -x ] && [ -f "$2" ] && /bin/mkdir -p "{unpacked}" && /bin/cp {idx_dir}/* "{unpacked}"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert tool.main(["fashion_mnist", "--data-dir", str(tmp_path / "tfds")]) == 0
    assert read(tmp_path / "tfds").shape == (10, 28, 28, 1)


def test_no_route(tool, tmp_path, capsys):
    assert tool.main(["fashion_mnist", "--data-dir", str(tmp_path / "tfds")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in (
        "--idx-dir",
        "sudo apt-get install dataset-fashion-mnist",
        "apt-get and dpkg are not installed",
        "TFDS",
    ):
        assert part in message
    assert not (tmp_path / "tfds").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "shape"])
def test_bad_idx_files_leave_nothing_behind(tool, idx_dir, tmp_path, capsys, damage):
    path = idx_dir / "t10k-labels-idx1-ubyte"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else idx(np.zeros(11, np.uint8)))
    root = tmp_path / "tfds"
    assert tool.main(["fashion_mnist", "--data-dir", str(root), "--idx-dir", str(idx_dir)]) == 1
    assert "t10k-labels-idx1-ubyte" in capsys.readouterr().err
    assert not any(root.iterdir())


def test_mistakes(tool, idx_dir, tmp_path, capsys):
    assert tool.main(["fashon_mnist", "--data-dir", str(tmp_path)]) == 1
    assert "TFDS knows no data set 'fashon_mnist'" in capsys.readouterr().err
    assert tool.main(["cifar10", "--idx-dir", str(idx_dir)]) == 1
    assert "--idx-dir holds Fashion-MNIST, but the data set asked for is cifar10" in capsys.readouterr().err


def test_other_data_sets(tool, tmp_path):
    root = tmp_path / "tfds"
    assert tool.main([TinyPictures.name, "--data-dir", str(root)]) == 0
    assert {path.name.split(".")[1].partition("-")[0] for path in root.rglob("*-of-*")} == {"array_record"}
    builder = tfds.builder(TinyPictures.name, data_dir=str(root))
    assert len(builder.as_data_source(split="train")) == COUNT


def test_records_prepared_by_tfds_get_random_access(tool, tmp_path):
    root = tmp_path / "tfds"
    builder = tfds.builder(TinyPictures.name, data_dir=str(root), file_format="tfrecord")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    run = config(f"tfds:{TinyPictures.name}", data_dir=str(root), memory_gib=0.0)
    with pytest.raises(DataError, match="has no random access"):
        data.train_batches(run)
    assert tool.main([TinyPictures.name, "--data-dir", str(root)]) == 0
    assert not list(root.rglob(".partial*"))
    (batch,) = data.eval_batches(run, "train", batch_size=COUNT)
    assert batch["valid"].all()
