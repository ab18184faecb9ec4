"""Features of every example of a split, computed once and read from disk: what frozen teachers say of the images.

A folder holds array_record files, of whose records each is one example's arrays, one after the other, in the order of
the examples. `manifest.json`, written last, says what they are; without it the folder is no more than a beginning.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mim_jax.data.color import OFF, active_key
from mim_jax.data.retry import read_with_retries
from mim_jax.errors import ConfigError, DataError
from mim_jax.files import replace_file, replace_text

MANIFEST, PLAN = "manifest.json", "plan.json"
TOOL = "tools/cache_features.py"
_FAILURES = (OSError, RuntimeError, ValueError)  # of array_record, damage included


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """Shape and dtype of one example's part of an array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes of one example."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of features holds. `source` says what they were computed from, each entry under a dotted name."""

    arrays: Mapping[str, StoredArray]  # by name in a batch
    num_examples: int
    shard_examples: int
    source: Mapping[str, Any]
    shard_bytes: tuple[int, ...] = ()  # of each file; none while the folder is not whole

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return -(-self.num_examples // self.shard_examples)

    @property
    def example_bytes(self) -> int:
        """Bytes of one example."""
        return sum(array.num_bytes for array in self.arrays.values())

    def examples(self, shard: int) -> np.ndarray:
        """The examples of a file: int64 `[n]`."""
        first = shard * self.shard_examples
        return np.arange(first, min(first + self.shard_examples, self.num_examples), dtype=np.int64)

    def file(self, shard: int) -> str:
        """The name of a file."""
        return f"features-{shard:05d}-of-{self.num_shards:05d}.array_record"

    def text(self) -> str:
        """JSON, with a newline."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """The inverse of `text`; raises ValueError, KeyError or TypeError for anything else."""
        fields = json.loads(text)
        arrays = {
            name: StoredArray(tuple(array["shape"]), array["dtype"]) for name, array in fields.pop("arrays").items()
        }
        return cls(arrays=arrays, shard_bytes=tuple(fields.pop("shard_bytes")), **fields)


class FeatureWriter:
    """Writes a folder of features, file by file; one that was begun before is gone on with.

    Several processes may write different files of the same folder at the same time.
    """

    def __init__(self, directory: pathlib.Path, manifest: Manifest):
        """Raises ConfigError where the folder holds something else."""
        self.directory, self.manifest = directory, Manifest.parse(manifest.text())  # as it will be read again
        for name in (MANIFEST, PLAN):
            if (directory / name).exists():
                begun = dataclasses.replace(_read_manifest(directory / name), shard_bytes=())
                check_same(directory, begun.source, self.manifest.source)
                if begun != self.manifest:
                    raise ConfigError(
                        f"{directory} holds features of another dtype or form; choose another folder or remove it."
                    )
                return
        if directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir()):
            raise ConfigError(f"{directory} holds something else; choose a new folder.")
        directory.mkdir(parents=True, exist_ok=True)
        replace_text(directory / PLAN, manifest.text())

    def missing(self) -> list[int]:
        """The files that are still to be written."""
        return [n for n in range(self.manifest.num_shards) if not (self.directory / self.manifest.file(n)).exists()]

    def write(self, shard: int, records: Iterable[bytes]) -> None:
        """Writes one file, whole or not at all: a record for each of its examples, empty for unreadable ones."""
        from array_record.python.array_record_module import ArrayRecordWriter  # runs without stored features need none

        def write_records(path: pathlib.Path) -> None:
            # Floats do not compress; groups of one are what random access wants.
            writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            try:
                for record in records:
                    writer.write(record)
            finally:
                writer.close()

        replace_file(self.directory / self.manifest.file(shard), write_records)

    def finish(self) -> bool:
        """Makes the folder a whole one if no file is missing; says whether it is."""
        if self.missing():
            return False
        sizes = tuple((self.directory / self.manifest.file(n)).stat().st_size for n in range(self.manifest.num_shards))
        replace_text(self.directory / MANIFEST, dataclasses.replace(self.manifest, shard_bytes=sizes).text())
        (self.directory / PLAN).unlink(missing_ok=True)
        return True


class StoredFeatures:
    """A whole folder of features, read at random. Thread-safe."""

    def __init__(self, directory: pathlib.Path):
        """Raises DataError unless every file is there and of its size."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.directory = directory
        if not (directory / MANIFEST).is_file():
            begun = (directory / PLAN).is_file()
            remedy = f"start {TOOL} again with the same arguments, which goes on" if begun else f"make it with {TOOL}"
            raise DataError(f"{directory} holds {'only a part of the' if begun else 'no'} features; {remedy}.")
        self.manifest = _read_manifest(directory / MANIFEST)
        self.arrays = self.manifest.arrays
        files = [directory / self.manifest.file(shard) for shard in range(self.manifest.num_shards)]
        for file, size in zip(files, self.manifest.shard_bytes, strict=True):
            if not file.is_file() or file.stat().st_size != size:
                raise DataError(f"{file} is not the file that was written; remove {directory} and make it anew.")
        self._records = read_with_retries(lambda: ArrayRecordDataSource(files), str(directory), _FAILURES)
        if len(self._records) != self.manifest.num_examples:
            raise DataError(
                f"{directory} has {len(self._records)} records for {self.manifest.num_examples} examples; remove it "
                "and make it anew."
            )

    def allocate(self, length: int) -> dict[str, np.ndarray]:
        """Arrays `[length, ...]` of the stored dtypes, to be filled."""
        return {name: np.empty((length, *array.shape), jnp.dtype(array.dtype)) for name, array in self.arrays.items()}

    def fill(self, indices: Sequence[int] | np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Writes the features of the examples `indices [n]` to the arrays of `out`.

        Raises:
          DataError: a file is damaged, or an example could not be read when its features were computed.
        """
        numbers = [int(index) for index in indices]
        records = read_with_retries(lambda: self._records.__getitems__(numbers), str(self.directory), _FAILURES)
        for row, record in enumerate(records):
            if len(record) != self.manifest.example_bytes:
                reason = "has features of another length" if record else "could not be read when it was made"
                raise DataError(
                    f"Example {numbers[row]} of {self.directory} {reason}; remove the folder and make it anew."
                )
            offset = 0
            for name, array in self.arrays.items():
                part = np.frombuffer(record, jnp.dtype(array.dtype), math.prod(array.shape), offset)
                out[name][row] = part.reshape(array.shape)
                offset += array.num_bytes

    def check_source(self, source: Mapping[str, Any]) -> None:
        """Raises ConfigError unless the features were computed from `source`, as far as that says."""
        check_same(self.directory, {name: self.manifest.source.get(name) for name in source}, source)


def to_records(arrays: Mapping[str, np.ndarray], valid: np.ndarray) -> list[bytes]:
    """One record for each row of `arrays [n, ...]`, in their order; an empty one where it is not `valid [n]`."""
    return [
        b"".join(array[row].tobytes() for array in arrays.values()) if valid[row] else b"" for row in range(len(valid))
    ]


def open_features(config: ConfigDict, num_examples: int) -> StoredFeatures | None:
    """What `config.data.teacher_cache` names, None where that is None.

    Raises:
      ConfigError: the training images change from epoch to epoch.
      DataError: the folder is not whole, or is about another number of examples.
    """
    if config.data.teacher_cache is None:
        return None
    check_unchanging(config)
    stored = StoredFeatures(pathlib.Path(config.data.teacher_cache).expanduser())
    if stored.manifest.num_examples != num_examples:
        raise DataError(
            f"{stored.directory} is about {stored.manifest.num_examples} examples and data.train_split has "
            f"{num_examples}; make another one with {TOOL}."
        )
    return stored


def check_unchanging(config: ConfigDict) -> None:
    """Raises ConfigError, naming the setting, unless an example looks the same whenever it is trained on."""
    data = config.data
    distorting = active_key(data)
    random = {
        "views": (data.views != "one", "one"),
        "crop": (data.crop not in ("resize", "none"), "resize"),
        "flip": (data.flip, False),
        "rand_augment": (data.rand_augment is not None, None),
        "trivial_augment": (data.trivial_augment, False),
        "random_erasing": (data.random_erasing > 0.0, 0.0),
        **({} if distorting is None else {distorting: (True, OFF[distorting])}),
    }
    for key, (is_on, off) in random.items():
        if is_on:
            raise ConfigError(
                f"data.{key} is {data[key]!r}, but what a teacher says of an image can be stored only where that looks "
                f"the same in every epoch; set data.{key}={off!r}, or train without data.teacher_cache."
            )


def check_same(directory: pathlib.Path, its: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises ConfigError naming the first entry of `ours` in which a folder's features differ."""
    for name, value in ours.items():
        if its.get(name) != value:
            raise ConfigError(
                f"The features in {directory} were made with {name} {its.get(name)!r}, here it is {value!r}; make "
                f"others with {TOOL} in another folder, or set {name} as it was."
            )


def _read_manifest(path: pathlib.Path) -> Manifest:
    try:
        return Manifest.parse(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove the folder and make it anew."
        ) from error
