"""Any prepared TFDS data set, by name and split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mim_jax.data.lazy_tensorflow import import_tensorflow
from mim_jax.data.retry import read_with_retries
from mim_jax.data.sources.examples import ArrayExamples, text_digest
from mim_jax.errors import DataError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

_LOAD_BATCH = 2048


@dataclasses.dataclass(frozen=True)
class TfdsSummary:
    """What the metadata says about a split, without reading its records."""

    name: str
    num_examples: int
    class_names: tuple[str, ...] | None
    num_classes: int | None
    image_shape: tuple[int, int, int] | None
    fingerprint: str
    labelled: bool

    def __len__(self) -> int:
        return self.num_examples


class TfdsRecords:
    """The records of a split on disk, read in any order; images stay encoded."""

    def __init__(self, summary: TfdsSummary, records: Any, image_key: str, label_key: str | None):
        self.name = summary.name
        self.class_names, self.num_classes = summary.class_names, summary.num_classes
        self.image_shape, self.fingerprint = summary.image_shape, summary.fingerprint
        self.labelled = label_key is not None
        self._records, self._image_key, self._label_key = records, image_key, label_key

    def __len__(self) -> int:
        return len(self._records)

    def describe(self, index: int) -> str:
        """The data set, its split and the record's number."""
        return f"{self.name}, record {index}"

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int | None]]:
        """Encoded images and labels at `indices`.

        Raises:
          DataError: the files cannot be read, after several attempts.
        """
        examples = read_with_retries(
            lambda: self._records.__getitems__(list(indices)), self.name, (OSError, RuntimeError, ValueError)
        )
        found = []
        for example in examples:
            features = example.features.feature
            label = features[self._label_key].int64_list.value[0] if self._label_key else None
            found.append((features[self._image_key].bytes_list.value[0], label))
        return found


class TfdsDataset:
    """`tfds:NAME[/CONFIG][:VERSION]`, prepared beforehand (`tools/prepare_data.py`); splits may be sliced,
    `train[:10%]`.

    Splits of equally sized images that fit into `memory_bytes` are decoded into memory once. Larger ones need a
    format with random access (ArrayRecord).
    """

    def __init__(self, name: str, data_dir: str | None, image_key: str, label_key: str, memory_bytes: float):
        self.name = f"tfds:{name}"
        self._name, self._data_dir = name, None if data_dir is None else str(Path(data_dir).expanduser())
        self._image_key, self._memory_bytes = image_key, memory_bytes
        builder = self._builder()
        if not builder.info.splits:
            raise DataError(
                f"The TFDS data set {name} is not prepared in {builder.data_dir}; run `{self._prepare_command()}` or "
                "set data.data_dir."
            )
        self.splits = tuple(builder.info.splits)
        self._features = builder.info.features
        if image_key not in self._features:
            raise DataError(
                f"The TFDS data set {name} has no feature {image_key!r}; set data.image_key to one of "
                f"{', '.join(sorted(self._features))}."
            )
        self._label_key = label_key if label_key in self._features else None
        if self._label_key and not _is_class_number(self._features[label_key]):
            raise DataError(
                f"The feature {label_key!r} of the TFDS data set {name} is not one integer per image; set "
                "data.label_key to a feature that is, or to 'none' to train without labels."
            )

    def summary(self, split: str) -> TfdsSummary:
        """Size and classes of `split`, from the metadata alone."""
        builder = self._builder()
        try:
            num_examples = builder.info.splits[split].num_examples
        except (KeyError, ValueError) as error:
            raise DataError(f"{self.name} has no split {split!r}; choose one of {', '.join(self.splits)}.") from error
        label = self._features[self._label_key] if self._label_key else None
        shape = self._features[self._image_key].shape
        return TfdsSummary(
            name=f"{self.name} ({split})",
            num_examples=num_examples,
            class_names=tuple(label.names) if label is not None and getattr(label, "names", None) else None,
            num_classes=getattr(label, "num_classes", None),
            image_shape=tuple(shape) if len(shape) == 3 and None not in shape else None,
            fingerprint=text_digest(builder.info.full_name, split, str(num_examples)),
            labelled=label is not None,
        )

    def open(self, split: str) -> ArrayExamples | TfdsRecords:
        """The examples of `split`, in memory where they are small enough.

        Raises:
          DataError: the split is too large for memory and was prepared in a format without random access, or its images
            are arrays too large for memory.
        """
        import tensorflow_datasets as tfds

        summary, builder = self.summary(split), self._builder()
        shape = summary.image_shape
        if shape is not None and summary.num_examples * float(np.prod(shape)) <= self._memory_bytes:
            return self._load(summary, builder, split)
        if not isinstance(self._features[self._image_key], tfds.features.Image):
            raise DataError(
                f"{summary.name} stores its images as plain arrays, which must fit into memory; raise data.memory_gib."
            )
        if not _has_random_access(builder):
            raise DataError(
                f"{summary.name} is prepared as {builder.info.file_format.value} in {builder.data_dir}, which has no "
                f"random access; run `{self._prepare_command()}` once to add ArrayRecord files beside it."
            )
        records = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.DESERIALIZE_NO_DECODE
        )
        return TfdsRecords(summary, records, self._image_key, self._label_key)

    def _load(self, summary: TfdsSummary, builder: DatasetBuilder, split: str) -> ArrayExamples:
        tf = import_tensorflow()
        if tf is None:
            raise DataError(
                f"Decoding {summary.name} needs TensorFlow, which is not installed; pip install tensorflow."
            )
        batches = _decoded(builder, split, tf).batch(_LOAD_BATCH).prefetch(2).as_numpy_iterator()
        images, labels = [], []
        for batch in batches:
            images.append(batch[self._image_key])
            labels.append(batch[self._label_key] if self._label_key else None)
        examples = ArrayExamples(
            summary.name,
            np.concatenate(images),
            np.concatenate(labels) if self._label_key else None,
            summary.class_names,
        )
        examples.fingerprint = summary.fingerprint
        return examples

    def _builder(self) -> DatasetBuilder:
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise DataError(
                f"data.source {self.name!r} needs tensorflow-datasets, which cannot be imported ({error}); pip install "
                "tensorflow-datasets."
            ) from error
        try:
            builder = tfds.builder(self._name, data_dir=self._data_dir)
            # Made from its directory, a builder knows of all file formats there; made from its name, of one.
            return tfds.builder_from_directory(builder.data_dir) if builder.info.splits else builder
        except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"TFDS cannot open {self._name!r}: {reason} Check data.source and data.data_dir."
            ) from error

    def _prepare_command(self) -> str:
        data_dir = f" --data-dir {self._data_dir}" if self._data_dir else ""
        return f"python tools/prepare_data.py {self._name}{data_dir}"


def _is_class_number(feature: Any) -> bool:
    return getattr(feature, "shape", None) == () and np.issubdtype(feature.np_dtype, np.integer)


def _has_random_access(builder: DatasetBuilder) -> bool:
    from tensorflow_datasets.core import file_adapters

    return bool(builder.info.available_file_formats() & file_adapters.FileFormat.with_random_access())


def _decoded(builder: DatasetBuilder, split: str, tf: Any) -> Any:
    """A `tf.data.Dataset` of the split's decoded examples in the order of their indices."""
    import tensorflow_datasets as tfds

    if _has_random_access(builder):
        records = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        raw = read_with_retries(
            lambda: records.__getitems__(range(len(records))),
            str(builder.data_dir),
            (OSError, RuntimeError, ValueError),
        )
        dataset = tf.data.Dataset.from_tensor_slices(raw)
        return dataset.map(builder.info.features.deserialize_example, num_parallel_calls=tf.data.AUTOTUNE)
    return builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
