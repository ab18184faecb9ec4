"""What a run learns about its data, and what it is told when there is none."""

import numpy as np
import pytest

from mim_jax import data
from mim_jax.errors import ConfigError, DataError
from tests.data.make import config, write_folder


def test_a_folder_with_splits(tmp_path):
    write_folder(tmp_path / "train", 6)
    write_folder(tmp_path / "val", 4)
    info = data.data_info(config(f"folder:{tmp_path}"))
    assert (info.num_train_examples, info.num_eval_examples) == (6, 4)
    assert (info.num_classes, info.class_names) == (2, ("class0", "class1"))
    assert info.image_shape is None


def test_no_evaluation_split_is_fine_unless_asked_for(tmp_path):
    write_folder(tmp_path, 6, classes=0)
    info = data.data_info(config(f"folder:{tmp_path}"))
    assert (info.num_eval_examples, info.num_classes, info.class_names) == (0, None, None)
    with pytest.raises(
        DataError, match=r"has no split 'test'; set data.train_split and data.eval_split to one of train"
    ):
        data.data_info(config(f"folder:{tmp_path}", eval_split="test"))


def test_synthetic():
    info = data.data_info(config("synthetic:30"))
    assert (info.num_train_examples, info.num_eval_examples, info.num_classes) == (30, 30, 10)
    assert info.image_shape == (16, 16, 3)


def test_the_fingerprint_follows_the_training_data(tmp_path):
    write_folder(tmp_path, 6)
    first = data.data_info(config(f"folder:{tmp_path}")).fingerprint
    assert first == data.data_info(config(f"folder:{tmp_path}", seed=3, crop="resize")).fingerprint
    write_folder(tmp_path / "more", 7)
    other = tmp_path / "more"
    assert first != data.data_info(config(f"folder:{other}")).fingerprint


def test_classes_of_the_evaluation_split_are_those_of_training(tmp_path):
    write_folder(tmp_path / "train", 6, classes=3)
    (tmp_path / "val" / "class2").mkdir(parents=True)
    source = tmp_path / "train" / "class2" / "0002.png"
    (tmp_path / "val" / "class2" / "a.png").write_bytes(source.read_bytes())
    (batch,) = data.eval_batches(config(f"folder:{tmp_path}"), batch_size=1)
    assert batch["label"].tolist() == [2]
    (tmp_path / "val" / "zebra").mkdir()
    (tmp_path / "val" / "zebra" / "a.png").write_bytes(source.read_bytes())
    renamed = tmp_path.rename(tmp_path.with_name("renamed"))
    with pytest.raises(DataError, match="has the class folder 'zebra', which the training split lacks"):
        data.data_info(config(f"folder:{renamed}"))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("folder:/does/not/exist", DataError, "There is no folder /does/not/exist; data.source must name"),
        ("npz:/does/not/exist.npz", DataError, "There is no file /does/not/exist.npz"),
        ("idx:/does/not/exist", DataError, "There is no exist-train-images-idx3-ubyte .* in /does/not"),
        ("imagenet", ConfigError, "data.source is 'imagenet'; write tfds:NAME, folder:DIR"),
        ("jar:/x", ConfigError, "whose form 'jar' is unknown; write tfds:NAME, folder:DIR"),
        ("synthetic:many", ConfigError, "data.source is 'synthetic:many'; write the number of images"),
        ("synthetic:0", ConfigError, "write the number of images"),
    ],
)
def test_missing_data(source, error, message):
    with pytest.raises(error, match=message):
        data.data_info(config(source))


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path} holds no image; looked for files ending in .jpg"):
        data.data_info(config(f"folder:{tmp_path}"))


def test_channels_that_do_not_match(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 8, 8, 3), np.uint8))
    run = config(f"npz:{tmp_path}/a.npz", channels=1)
    with pytest.raises(ConfigError, match=r"channels is 1, but the images of npz:.* have 3; set channels to 3"):
        data.data_info(run)
    write_folder(tmp_path / "images", 2)
    five = dict(channels=5, mean=(0.5,) * 5, std=(0.5,) * 5)
    with pytest.raises(ConfigError, match=r"channels is 5, but the files of folder:.* decode to 1 or 3 channels"):
        data.data_info(config(f"folder:{tmp_path}/images", **five))
    grey = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "grey.npz", image=grey)
    assert data.data_info(config(f"npz:{tmp_path}/grey.npz", channels=3)).image_shape == (8, 8, 1)


def test_labels_that_training_does_not_know(tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(3), x_test=images, y_test=np.array([0, 5, 1]))
    with pytest.raises(DataError, match=r"\(test\) has labels up to 5, but those of .* \(train\) end at 2"):
        data.data_info(config(f"npz:{tmp_path}/a.npz"))


def test_a_size_that_crop_none_cannot_give(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((8, 8, 9, 3), np.uint8))
    run = config(f"npz:{tmp_path}/a.npz", crop="none")
    with pytest.raises(ConfigError, match=r"data.crop is 'none', but image_size is 16x16 and the images of .* are 8x9"):
        data.data_info(run)
