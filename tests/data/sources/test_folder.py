"""Which files a folder holds and what their classes are."""

import os

import pytest

from mim_jax.data import retry
from mim_jax.data.sources.folder import FolderDataset
from mim_jax.errors import DataError


def make(root, *paths: str) -> FolderDataset:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return FolderDataset(str(root), "train")


def test_class_folders(tmp_path):
    dataset = make(tmp_path, "dog/b.jpg", "cat/deep/er/a.PNG", "cat/z.webp", "cat/notes.txt", "dog/.hidden.jpg")
    assert dataset.splits == ("train",)
    examples = dataset.open("train")
    assert examples.class_names == ("cat", "dog") and len(examples) == 3
    assert list(examples.read([0, 1, 2])) == [(b"cat/deep/er/a.PNG", 0), (b"cat/z.webp", 0), (b"dog/b.jpg", 1)]
    assert examples.describe(2) == os.path.join(tmp_path, "dog/b.jpg")


def test_splits(tmp_path):
    dataset = make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg", "other/c/4.jpg")
    assert dataset.splits == ("train", "val")
    assert list(dataset.open("val").read([0])) == [(b"val/b/3.jpg", 1)]


def test_a_split_of_any_name(tmp_path):
    make(tmp_path, "2024/a/1.jpg")
    assert FolderDataset(str(tmp_path), "2024").splits == ("2024",)


def test_images_directly_inside_mean_no_labels(tmp_path):
    examples = make(tmp_path, "1.jpg", "2.jpg", "inner/3.jpg").open("train")
    assert examples.class_names is None and not examples.labelled
    assert list(examples.read([2])) == [(b"inner/3.jpg", None)]


def test_an_unlabelled_evaluation_split(tmp_path):
    dataset = make(tmp_path, "train/a/1.jpg", "val/2.jpg")
    assert dataset.open("train").labelled and not dataset.open("val").labelled


def test_links_are_followed_but_not_for_ever(tmp_path):
    make(tmp_path / "far", "1.jpg")
    root = tmp_path / "near"
    make(root, "a/2.jpg")
    (root / "b").symlink_to(tmp_path / "far")
    (root / "a" / "loop").symlink_to(root)
    examples = FolderDataset(str(root), "train").open("train")
    assert [os.path.relpath(examples.describe(index), root) for index in range(len(examples))] == ["a/2.jpg", "b/1.jpg"]


def test_odd_names(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    examples = make(tmp_path, "ünï/a b.jpg").open("train")
    assert examples.class_names == ("ünï",)
    with open(tmp_path / "ünï" / name, "wb") as file:
        file.write(b"x")
    assert len(FolderDataset(str(tmp_path), "train").open("train").fingerprint) == 16


def test_a_file_that_vanishes(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.0)
    examples = make(tmp_path, "a/1.jpg").open("train")
    (tmp_path / "a" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"Cannot read .*a/1.jpg after 4 attempts: .*No such file"):
        list(examples.read([0]))


def test_an_empty_split(tmp_path):
    dataset = make(tmp_path, "train/a/1.jpg")
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="val holds no image"):
        FolderDataset(str(tmp_path), "train").open("val")
    assert dataset.splits == ("train",)
