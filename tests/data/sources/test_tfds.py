"""TFDS data sets: in memory, record by record, and what is said when they are not there."""

import itertools

import numpy as np
import pytest

from mim_jax import data
from mim_jax.data.sources import open_examples
from mim_jax.errors import DataError
from tests.data.make import config

tfds = pytest.importorskip("tensorflow_datasets")

COUNT = 21


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """`COUNT` flat pictures whose level and label follow from their number, and 5 for testing."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(12, 12, 3)),
                "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                "planes": tfds.features.Tensor(shape=(4, 4, 5), dtype=np.float32),
            }
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(COUNT), "validation": self._generate_examples(5)}

    def _generate_examples(self, count):
        for number in range(count):
            image = np.full((12, 12, 3), 10 * number, np.uint8)
            planes = np.full((4, 4, 5), number / COUNT, np.float32)
            yield number, {"image": image, "label": number % 3, "planes": planes}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """The data set prepared in each file format."""
    found = {}
    for file_format in ("tfrecord", "array_record"):
        found[file_format] = str(tmp_path_factory.mktemp(file_format))
        builder = tfds.builder("tiny_pictures", data_dir=found[file_format], file_format=file_format)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return found


def run(directory: str, **changes):
    options = dict(data_dir=directory, mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=7) | changes
    return config("tfds:tiny_pictures", **options)


def test_info(directories):
    info = data.data_info(run(directories["tfrecord"]))
    assert (info.num_train_examples, info.num_eval_examples, info.num_classes) == (COUNT, 5, 3)
    assert info.class_names == ("a", "b", "c") and info.image_shape == (12, 12, 3)
    assert info.fingerprint == data.data_info(run(directories["array_record"])).fingerprint
    sliced = data.data_info(run(directories["tfrecord"], train_split="train[:5]", eval_split="train[5:]+validation"))
    assert (sliced.num_train_examples, sliced.num_eval_examples) == (5, 21)


def test_the_stream_does_not_depend_on_how_records_are_stored(directories):
    streams = [
        data.train_batches(run(directories["tfrecord"])),
        data.train_batches(run(directories["array_record"])),
        data.train_batches(run(directories["array_record"], memory_gib=0.0)),
    ]
    seen = []
    for first, second, third in itertools.islice(zip(*streams, strict=True), 3):
        np.testing.assert_array_equal(first["image"], second["image"])
        assert np.abs(first["image"] - third["image"]).max() < 2 / 255
        for batch in (second, third):
            np.testing.assert_array_equal(first["label"], batch["label"])
        levels = np.rint(first["image"][:, 8, 8, 0] * 25.5).astype(int)
        assert (levels % 3 == first["label"]).all()
        seen.extend(levels.tolist())
    assert sorted(seen) == list(range(COUNT))
    for stream in streams:
        stream.close()


def test_sliced_splits_and_evaluation(directories):
    for memory_gib in (1.0, 0.0):
        changes = dict(train_split="train[:10]", memory_gib=memory_gib)
        batches = list(data.eval_batches(run(directories["array_record"], **changes), "train[:10]", batch_size=4))
        assert np.concatenate([batch["valid"] for batch in batches]).sum() == 10
        (batch,) = data.eval_batches(run(directories["array_record"], **changes), batch_size=5)
        assert batch["valid"].all()


def test_arrays_that_are_no_pictures(directories):
    many = dict(image_key="planes", channels=5, image_size=4, mean=(0.0,) * 5, std=(1.0,) * 5, crop="none")
    (batch,) = itertools.islice(data.train_batches(run(directories["tfrecord"], **many)), 1)
    assert batch["image"].shape == (7, 4, 4, 5)
    with pytest.raises(DataError, match="stores its images as plain arrays, .* raise data.memory_gib"):
        data.train_batches(run(directories["tfrecord"], memory_gib=0.0, **many))


def test_evaluation_does_not_depend_on_how_records_are_stored(directories):
    batches = [
        next(data.eval_batches(run(directories["array_record"], memory_gib=memory, image_size=12), batch_size=5))
        for memory in (1.0, 0.0)
    ]
    for name in batches[0]:
        np.testing.assert_array_equal(batches[0][name], batches[1][name])


def test_without_labels(directories):
    info = data.data_info(run(directories["tfrecord"], label_key="none"))
    assert info.num_classes is None and info.class_names is None
    for memory in (1.0, 0.0):
        stream = data.train_batches(run(directories["array_record"], label_key="none", memory_gib=memory))
        assert next(stream).keys() == {"image"}
        stream.close()


def test_records_name_themselves(directories):
    examples = open_examples(run(directories["array_record"], memory_gib=0.0), "train")
    assert examples.describe(3) == "tfds:tiny_pictures (train), record 3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(train_split="trian"), "no split 'trian'; .* one of train, validation"),
        (dict(train_split="trian[:5]"), r"no split 'trian\[:5\]'; choose one of train, validation"),
        (dict(eval_split="test"), "no split 'test'"),
        (dict(label_key="planes"), "'planes' of the TFDS data set .* is not one integer per image; set data.label_key"),
        (dict(image_key="picture"), "no feature 'picture'; set data.image_key to one of image, label, planes"),
    ],
)
def test_misspelt(directories, changes, message):
    with pytest.raises(DataError, match=message):
        data.data_info(run(directories["array_record"], **changes))


def test_not_there(directories, tmp_path):
    with pytest.raises(DataError, match=f"not prepared in {tmp_path}.*run `python tools/prepare_data.py tiny_pictures"):
        data.data_info(run(str(tmp_path)))
    with pytest.raises(DataError, match="TFDS cannot open 'tiny_picture'"):
        data.data_info(config("tfds:tiny_picture", data_dir=str(tmp_path)))
    with pytest.raises(
        DataError, match="is prepared as tfrecord in .* no random access; run `python tools/prepare_data"
    ):
        data.train_batches(run(directories["tfrecord"], memory_gib=0.0))
