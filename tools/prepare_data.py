"""Prepares a data set for `data.source = "tfds:NAME"`, so that training can read it in any order.

    python tools/prepare_data.py fashion_mnist [--idx-dir DIR] [--data-dir DIR]

Fashion-MNIST is taken from the first of these that works: what is already prepared, `--idx-dir`, the files of
Debian's package `dataset-fashion-mnist` if it is installed, the package itself (`apt-get download`, no root needed),
TFDS's own download. Any other TFDS name is downloaded by TFDS and stored as ArrayRecord. Data that TFDS has prepared
as TFRecord gets ArrayRecord files beside it, because TFRecord has no random access. Running the tool again does
nothing; an interrupted run leaves nothing half-made behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mim_jax.data.lazy_tensorflow import import_tensorflow
from mim_jax.data.sources.arrays import read_idx
from mim_jax.errors import DataError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

DEBIAN_PACKAGE = "dataset-fashion-mnist"
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IDX_SHAPES = {
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the tool with the command line `argv`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="TFDS name, such as fashion_mnist or imagenet2012")
    parser.add_argument("--idx-dir", type=Path, help="folder of the four Fashion-MNIST IDX files, gzipped or not")
    parser.add_argument("--data-dir", help="TFDS directory; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    arguments = parser.parse_args(argv)
    try:
        where = prepare(arguments.name, arguments.data_dir, arguments.idx_dir)
    except DataError as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.name} is ready in {where}.")
    return 0


def prepare(name: str, data_dir: str | None = None, idx_dir: Path | None = None) -> str:
    """Makes sure that the TFDS data set `name` exists with random access; returns its directory.

    Raises:
      DataError: no route to the data works, or a library is missing.
    """
    if idx_dir is not None and name != "fashion_mnist":
        raise DataError(f"--idx-dir holds Fashion-MNIST, but the data set asked for is {name}; leave one of them out.")
    builder = _builder(name, data_dir)
    if not builder.info.splits:
        if name == "fashion_mnist":
            _prepare_fashion_mnist(builder, idx_dir)
        else:
            print(f"Letting TFDS download and prepare {name} ...", flush=True)
            _download(_builder(name, data_dir, file_format="array_record"))
    add_random_access(str(builder.data_dir))
    return str(builder.data_dir)


def add_random_access(folder: str) -> None:
    """Writes ArrayRecord files beside the TFRecord files of the data set in `folder`, and says so in its metadata."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if formats & {"array_record", "parquet"}:
        return
    from array_record.python.array_record_module import ArrayRecordWriter
    from tqdm import tqdm

    tf = import_tensorflow()
    shards = [Path(path) for split in builder.info.splits.values() for path in split.filepaths]
    total = sum(split.num_examples for split in builder.info.splits.values())
    with tqdm(total=total, unit=" records", desc="Adding random access", mininterval=1.0) as progress:
        for shard in shards:
            target = shard.with_name(shard.name.replace(".tfrecord", ".array_record"))
            if target.exists():
                continue
            partial = target.with_name(f".partial-{target.name}")
            writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")  # the images are compressed already
            for records in tf.data.TFRecordDataset(str(shard)).batch(256).as_numpy_iterator():
                for record in records:
                    writer.write(record)
                progress.update(len(records))
            writer.close()
            os.replace(partial, target)
    metadata = Path(folder) / "dataset_info.json"
    content = json.loads(metadata.read_text())
    content["alternativeFileFormats"] = [*content.get("alternativeFileFormats", []), "array_record"]
    partial = metadata.with_name(".partial-dataset_info.json")
    partial.write_text(json.dumps(content, indent=2))
    os.replace(partial, metadata)


def _prepare_fashion_mnist(builder: DatasetBuilder, idx_dir: Path | None) -> None:
    """Fills the builder's directory by the first route that works; DataError naming all of them if none does."""
    if idx_dir is not None:
        _from_idx(builder, idx_dir.expanduser())
        return
    if SYSTEM_FOLDER.is_dir():
        _from_idx(builder, SYSTEM_FOLDER)
        return
    try:
        with debian_package() as folder:
            _from_idx(builder, folder)
            return
    except DataError as error:
        apt_failure = str(error)
    print(f"{apt_failure} Trying TFDS's own download ...", flush=True)
    try:
        _check_reachable(type(builder).URL)
        _download(builder)
    except DataError as error:
        raise DataError(
            "Fashion-MNIST could not be fetched. Any one of these routes is enough: (1) put the four *-ubyte.gz files "
            f"into a folder and pass --idx-dir; (2) sudo apt-get install {DEBIAN_PACKAGE}; (3) apt-get download "
            f"{DEBIAN_PACKAGE} [{apt_failure}]; (4) internet access for TFDS [{error}]"
        ) from error


def _from_idx(builder: DatasetBuilder, idx_dir: Path) -> None:
    """Lets TFDS build the data set from IDX files, in a staging directory that is moved into place when complete."""
    print(f"Preparing Fashion-MNIST from {idx_dir} ...", flush=True)
    target = Path(builder.data_dir)
    root = Path(builder.data_dir_root)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=root) as staging:
        files = Path(staging) / "idx"
        files.mkdir()
        for name, shape in IDX_SHAPES.items():
            (files / name).write_bytes(_idx_bytes(idx_dir, name, shape))
        staged = _builder("fashion_mnist", staging)
        staged._split_generators = lambda dl_manager: type(staged)._split_generators(staged, _LocalFiles(files))
        _download(staged)
        add_random_access(str(staged.data_dir))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staged.data_dir, target)


class _LocalFiles:
    """Stands in for TFDS's download manager: hands out local files by the last part of their URL."""

    def __init__(self, folder: Path):
        self._folder = folder

    def download_and_extract(self, urls: dict[str, str]) -> dict[str, Path]:
        """Paths of the uncompressed files, by the keys of `urls`."""
        return {key: self._folder / url.rsplit("/", 1)[1].removesuffix(".gz") for key, url in urls.items()}


def _idx_bytes(folder: Path, name: str, shape: tuple[int, ...]) -> bytes:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            array = read_idx(path)
            if array.shape != shape:
                raise DataError(f"{path} holds an array of shape {array.shape}; Fashion-MNIST's is {shape}.")
            header = b"\0\0\x08" + bytes([len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
            return header + array.tobytes()
    raise DataError(f"{folder} has no {name} (.gz or not); it must hold the four Fashion-MNIST IDX files.")


@contextlib.contextmanager
def debian_package() -> Iterator[Path]:
    """The IDX files of Debian's package, unpacked into a temporary folder."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise DataError("apt-get and dpkg are not installed.")
    print(f"Downloading the Debian package {DEBIAN_PACKAGE} ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(["apt-get", "download", DEBIAN_PACKAGE], folder)
        except DataError:  # no package lists on a new machine, or old ones: fetch fresh ones of our own, without root
            lists = Path(folder, "lists")
            (lists / "partial").mkdir(parents=True)
            apt = ["apt-get", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder}"]
            _run([*apt, "update"], folder)
            _run([*apt, "download", DEBIAN_PACKAGE], folder)
        packages = sorted(Path(folder).glob("*.deb"))
        if not packages:
            raise DataError(f"apt-get downloaded no package called {DEBIAN_PACKAGE}.")
        _run(["dpkg", "-x", str(packages[0]), "unpacked"], folder)  # tar refuses to write outside of it
        unpacked = Path(folder, "unpacked").resolve()
        images = unpacked.joinpath(*SYSTEM_FOLDER.parts[1:])
        for path in (images, *images.glob("*")):
            if not path.resolve().is_relative_to(unpacked):
                raise DataError(f"{packages[0].name} holds {path.name} as a link out of the package; do not use it.")
        yield images


def _run(command: list[str], folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
        raise DataError(f"`{' '.join(command)}` failed: {reason}.") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"`{' '.join(command)}` failed: {error}.") from error


def _check_reachable(url: str) -> None:
    """Raises DataError within seconds where there is no internet; TFDS itself would retry for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return  # a server answered; whether the files are there is for TFDS to find out
    except OSError as error:
        raise DataError(f"{url} cannot be reached: {error}.") from error


def _download(builder: DatasetBuilder) -> None:
    """TFDS's own `download_and_prepare`, its many ways of failing turned into DataError."""
    import tensorflow_datasets as tfds

    failures = (
        OSError,
        AssertionError,
        tfds.download.DownloadError,
        tfds.download.download_manager.NonMatchingChecksumError,
    )
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except failures as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"TFDS could not prepare {builder.name}: {reason}") from error


def _builder(name: str, data_dir: str | None, **options: str) -> DatasetBuilder:
    if import_tensorflow() is None:
        raise DataError("Preparing data needs TensorFlow, which is not installed; pip install tensorflow.")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"tensorflow-datasets cannot be imported ({error}); pip install tensorflow-datasets."
        ) from error
    try:
        data_dir = None if data_dir is None else str(Path(data_dir).expanduser())
        return tfds.builder(name, data_dir=data_dir, **options)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise DataError(f"TFDS knows no data set {name!r}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    sys.exit(main())
