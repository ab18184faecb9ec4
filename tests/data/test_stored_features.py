"""Features on disk: whole or not there, each with its example, and only for images that never change."""

import itertools
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import data
from mim_jax.data import stored_features
from mim_jax.data.retry import ATTEMPTS
from mim_jax.data.stored_features import FeatureWriter, Manifest, StoredArray, StoredFeatures, to_records
from mim_jax.errors import ConfigError, DataError
from tests.data.make import config, encode, levels, write_folder

EXAMPLES, SHARD = 20, 6
ARRAYS = {"taught/number": StoredArray((), "int32"), "taught/wide": StoredArray((3, 400), "bfloat16")}
MANIFEST = Manifest(ARRAYS, EXAMPLES, SHARD, {"image_size": [16, 16], "data.mean": [0.5]})


def features(numbers) -> dict[str, np.ndarray]:
    """What is stored of each example: its number, and numbers that follow from it."""
    numbers = np.asarray(numbers, np.int32)
    wide = numbers[:, None, None] + np.arange(1200).reshape(3, 400)
    return {"taught/number": numbers, "taught/wide": wide.astype(jnp.bfloat16)}


def write(directory: pathlib.Path, manifest: Manifest = MANIFEST, unreadable: tuple[int, ...] = ()) -> FeatureWriter:
    writer = FeatureWriter(directory, manifest)
    for shard in writer.missing():
        numbers = manifest.examples(shard)
        writer.write(shard, to_records(features(numbers), ~np.isin(numbers, unreadable)))
    assert writer.finish()
    return writer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("features") / "whole"
    write(directory)
    return directory


@pytest.fixture
def copy(whole, tmp_path):
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("mim_jax.data.retry.FIRST_DELAY", 0.0)
    assert ATTEMPTS > 1


def read(directory: pathlib.Path, numbers) -> dict[str, np.ndarray]:
    stored = StoredFeatures(directory)
    out = stored.allocate(len(numbers))
    stored.fill(numbers, out)
    return out


def test_what_is_read_is_what_was_written(whole):
    numbers = [19, 0, 7, 7, 5, 6]
    found, expected = read(whole, numbers), features(numbers)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])
    assert sorted(path.name for path in whole.iterdir()) == [
        *(f"features-0000{n}-of-00004.array_record" for n in range(4)),
        "manifest.json",
    ]


def test_a_beginning_is_no_whole_and_is_gone_on_with(tmp_path):
    writer = FeatureWriter(tmp_path / "a", MANIFEST)
    writer.write(2, to_records(features(MANIFEST.examples(2)), np.ones(SHARD, bool)))

    def interrupted():
        yield from to_records(features(MANIFEST.examples(0)), np.ones(SHARD, bool))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(0, interrupted())
    assert not writer.finish()
    with pytest.raises(DataError, match="holds only a part of the features; start tools/cache_features.py again"):
        StoredFeatures(tmp_path / "a")
    assert FeatureWriter(tmp_path / "a", MANIFEST).missing() == [0, 1, 3]
    before = (tmp_path / "a" / MANIFEST.file(2)).stat().st_mtime_ns
    write(tmp_path / "a")
    assert (tmp_path / "a" / MANIFEST.file(2)).stat().st_mtime_ns == before
    np.testing.assert_array_equal(read(tmp_path / "a", range(20))["taught/number"], np.arange(20))


def test_a_folder_of_something_else_is_left_alone(whole, tmp_path):
    other = Manifest(ARRAYS, EXAMPLES, SHARD, {**MANIFEST.source, "image_size": [8, 8]})
    with pytest.raises(ConfigError, match=r"made with image_size \[16, 16\], here it is \[8, 8\]"):
        FeatureWriter(whole, other)
    narrow = {**ARRAYS, "taught/wide": StoredArray((3, 400), "float16")}
    with pytest.raises(ConfigError, match="of another dtype or form; choose another folder"):
        FeatureWriter(whole, Manifest(narrow, EXAMPLES, SHARD, MANIFEST.source))
    assert FeatureWriter(whole, MANIFEST).missing() == []
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else; choose a new folder"):
        FeatureWriter(tmp_path, MANIFEST)


def test_no_folder_is_an_empty_one(tmp_path):
    with pytest.raises(DataError, match="holds no features; make it with tools/cache_features.py"):
        StoredFeatures(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["missing", "shorter", "manifest"])
def test_damage_that_shows_is_refused_at_once(copy, damage):
    file = copy / MANIFEST.file(1)
    if damage == "missing":
        file.unlink()
    elif damage == "shorter":
        os.truncate(file, file.stat().st_size - 1)
    else:
        (copy / stored_features.MANIFEST).write_text('{"arrays": {}}')
    with pytest.raises(DataError, match="is damaged" if damage == "manifest" else "is not the file that was written"):
        StoredFeatures(copy)


@pytest.mark.usefixtures("no_waiting")
def test_a_flipped_bit_is_no_feature(copy):
    file = copy / MANIFEST.file(1)
    content = bytearray(file.read_bytes())
    at = content.find(features([8])["taught/wide"].tobytes())
    assert at > 0  # stored as it is
    content[at + 1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="Cannot read .* after 4 attempts"):
        read(copy, [8])


def test_an_example_that_was_unreadable_is_named(tmp_path):
    write(tmp_path / "a", unreadable=(8,))
    read(tmp_path / "a", [7, 9])
    with pytest.raises(DataError, match=r"Example 8 of .* could not be read when it was made"):
        read(tmp_path / "a", [7, 8])


def unchanging(source: str, directory: pathlib.Path, **changes):
    section = dict(crop="resize", flip=False, mean=(0.0,) * 3, std=(1.0,) * 3, max_bad_fraction=0.2)
    return config(source, teacher_cache=str(directory), **{**section, **changes})


@pytest.mark.parametrize("kind", ["synthetic", "folder"])
def test_every_example_comes_with_its_features(whole, tmp_path, kind):
    write_folder(tmp_path, EXAMPLES, classes=0)
    run = unchanging({"synthetic": f"synthetic:{EXAMPLES}", "folder": f"folder:{tmp_path}"}[kind], whole)
    plain = run.copy_and_resolve_references()
    plain.data.teacher_cache = None
    seen = []
    for ours, expected in itertools.islice(zip(data.train_batches(run), data.train_batches(plain), strict=False), 5):
        np.testing.assert_array_equal(ours["image"], expected["image"])
        np.testing.assert_array_equal(ours["taught/number"], ours["index"])
        np.testing.assert_array_equal(ours["taught/wide"], features(ours["index"])["taught/wide"])
        if kind == "folder":
            assert levels(ours) == ours["taught/number"].tolist()
        seen += ours["index"].tolist()
    assert sorted(seen[:EXAMPLES]) == list(range(EXAMPLES))


def test_what_stands_in_for_an_unreadable_image_has_features_of_its_own(tmp_path):
    write_folder(tmp_path / "images", EXAMPLES, classes=0)
    (tmp_path / "images" / "0008.png").write_bytes(encode(np.zeros((4, 4, 3), np.uint8), "PNG")[:40])
    write(tmp_path / "features", unreadable=(8,))
    batches = data.train_batches(unchanging(f"folder:{tmp_path}/images", tmp_path / "features"))
    numbers = []
    for batch in itertools.islice(batches, 5):
        assert levels(batch) == batch["taught/number"].tolist()
        numbers += batch["taught/number"].tolist()
    batches.close()
    assert 8 not in numbers and len(set(numbers[:EXAMPLES])) == EXAMPLES - 1


def test_the_number_of_examples_must_be_the_same(whole):
    with pytest.raises(DataError, match="is about 20 examples and data.train_split has 24"):
        data.train_batches(unchanging("synthetic:24", whole))


@pytest.mark.parametrize(
    ("key", "value", "off"),
    [
        ("crop", "random_resized", "'resize'"),
        ("crop", "window", "'resize'"),
        ("flip", True, "False"),
        ("views", "random", "'one'"),
        ("color_jitter", (0.4, 0.4, 0.4, 0.1), "None"),
        ("blur", 0.5, "0.0"),
        ("rand_augment", "rand-m9-mstd0.5-inc1", "None"),
        ("trivial_augment", True, "False"),
        ("random_erasing", 0.25, "0.0"),
    ],
)
def test_images_that_change_are_refused_by_name(whole, key, value, off):
    with pytest.raises(ConfigError, match=rf"data\.{key} is .* every epoch; set data\.{key}={off}, or train without"):
        data.train_batches(unchanging(f"synthetic:{EXAMPLES}", whole, **{key: value}))
