"""NumPy archives and IDX files."""

import gzip
import struct

import numpy as np
import pytest

from mim_jax.data.sources.arrays import IdxDataset, NpzDataset, read_idx
from mim_jax.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)


def idx(array: np.ndarray) -> bytes:
    codes = {"uint8": 8, "int32": 12}
    return (
        struct.pack(f">HBB{array.ndim}I", 0, codes[array.dtype.name], array.ndim, *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


class TestNpz:
    @pytest.mark.parametrize(("image", "label"), [("image", "label"), ("images", "labels"), ("x", "y")])
    def test_one_split(self, tmp_path, image, label):
        np.savez(tmp_path / "a.npz", **{image: IMAGES, label: np.arange(6)})
        dataset = NpzDataset(f"{tmp_path}/a.npz")
        assert dataset.splits == ("train",)
        assert dataset.open("train").labels.tolist() == list(range(6))

    @pytest.mark.parametrize("form", ["{split}_images", "x_{split}", "{split}_image"])
    def test_several_splits(self, tmp_path, form):
        arrays = {form.format(split="train"): IMAGES, form.format(split="test"): IMAGES[:2]}
        np.savez_compressed(tmp_path / "a.npz", **arrays)
        dataset = NpzDataset(f"{tmp_path}/a.npz")
        assert dataset.splits == ("train", "test")
        examples = dataset.open("test")
        assert len(examples) == 2 and examples.labels is None and examples.num_classes is None

    def test_pickles_are_refused(self, tmp_path):
        np.savez(tmp_path / "a.npz", image=np.array([{"code": 1}], dtype=object))
        with pytest.raises(DataError, match=r"cannot be read: Object arrays cannot be loaded"):
            NpzDataset(f"{tmp_path}/a.npz").open("train")

    def test_bad_files(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez(path, pictures=IMAGES)
        with pytest.raises(DataError, match=r"holds the arrays \['pictures'\], none of which is called image"):
            NpzDataset(str(path))
        np.save(tmp_path / "single.npy", IMAGES)
        with pytest.raises(DataError, match="is a single array; save images and labels together"):
            NpzDataset(f"{tmp_path}/single.npy")
        path.write_bytes(b"PK\x03\x04 not a zip")
        with pytest.raises(DataError, match="is not a readable .npz archive"):
            NpzDataset(str(path))
        np.savez(path, image=IMAGES)
        content = bytearray(path.read_bytes())
        content[180] ^= 255
        path.write_bytes(bytes(content))
        with pytest.raises(DataError, match="cannot be read"):
            NpzDataset(str(path)).open("train")


class TestIdx:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("prefix", ["", "letters-"])
    def test_the_mnist_family(self, tmp_path, packed, prefix):
        for split, images in (("train", IMAGES), ("t10k", IMAGES[:2])):
            for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(len(images), dtype=np.uint8))):
                content = idx(array)
                path = tmp_path / f"{prefix}{split}-{kind}-ubyte{'.gz' if packed else ''}"
                path.write_bytes(gzip.compress(content) if packed else content)
        dataset = IdxDataset(f"{tmp_path}/{prefix}")
        assert dataset.splits == ("train", "test")
        np.testing.assert_array_equal(dataset.open("train").images[..., 0], IMAGES)
        assert dataset.open("test").labels.tolist() == [0, 1]

    def test_without_labels(self, tmp_path):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
        dataset = IdxDataset(str(tmp_path))
        assert dataset.splits == ("train",) and dataset.open("train").labels is None

    def test_other_types(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(idx(np.array([1, -2, 70000], np.int32)))
        assert read_idx(path).tolist() == [1, -2, 70000]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is not an IDX file"),
            (b"\x89PNG....", "is not an IDX file: it starts with '89504e47'"),
            (idx(IMAGES)[:-1], r"announces an array of shape \(6, 4, 5\) but holds 119 bytes"),
            (gzip.compress(idx(IMAGES))[:-20], "is damaged"),
        ],
        ids=["empty", "png", "short", "cut"],
    )
    def test_bad_files(self, tmp_path, content, message):
        path = tmp_path / "a"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_idx(path)
