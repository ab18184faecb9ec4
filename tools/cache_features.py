"""Computes what a config's frozen teachers say of its training images, once, and writes it to a folder.

    python tools/cache_features.py --config=configs/maskalign_fashion_mnist.py --out=features/maskalign \
        --config.teacher.weights=runs/supervised --config.data.flip=False --config.data.crop=none
    python -m mim_jax.train --config=configs/maskalign_fashion_mnist.py --workdir=runs/maskalign \
        --config.teacher.weights=runs/supervised --config.data.flip=False --config.data.crop=none \
        --config.data.teacher_cache=features/maskalign

Training then reads the features instead of running the teachers. That is exact only where an image looks the same in
every epoch; a config that crops, flips or otherwise changes images at random is refused.

Started again, it goes on where it was stopped; the folder can be used once it is whole. Several machines that share a
file system divide the work by --part=0/4, --part=1/4, and so on, in any order.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import tqdm
from ml_collections import ConfigDict

from mim_jax import data
from mim_jax.cli import config_from_command_line, show_own_logs_only, split_config_arguments
from mim_jax.errors import CheckpointError, ConfigError, DataError, WeightsError
from mim_jax.interop import import_with_report
from mim_jax.training.initialize import first_variables
from mim_jax.training.program import Program
from mim_jax.training.sharding import make_mesh
from mim_jax.training.teacher_cache import DTYPES, CacheMaker, taught_features
from mim_jax.training.teachers import check_teachers

_GIB = 2**30


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    path, overrides, rest = split_config_arguments(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(rest)
    show_own_logs_only()
    try:
        part, parts = parse_part(arguments.part)
        config = config_from_command_line(path, overrides)
        whole = cache(config, arguments.out, arguments.dtype, part, parts)
    except (ConfigError, DataError, WeightsError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.out} is whole." if whole else f"{arguments.out} waits for the other parts.")


def cache(config: ConfigDict, out: pathlib.Path, dtype: str = "float16", part: int = 0, parts: int = 1) -> bool:
    """Writes one of `parts` parts of the features to the folder `out`; says whether this makes it whole.

    Raises:
      ConfigError: the teachers have no weights or say nothing that can be stored, images change from epoch to epoch, or
        the folder holds something else.
      DataError, WeightsError, CheckpointError: images or the teachers' weights cannot be read.
    """
    config.data.teacher_cache = None
    info = data.data_info(config)
    program = Program(config, make_mesh(config.mesh), info.num_train_examples)
    taught_features(program.objective)  # refused before any weights are loaded
    check_teachers(program.objective)
    maker = CacheMaker(program, info, first_variables(program, import_with_report), out.expanduser(), dtype)
    manifest = maker.writer.manifest
    size = manifest.num_examples * manifest.example_bytes / _GIB
    print(f"{manifest.num_examples} images, {manifest.example_bytes} bytes of features each, {size:.2f} GiB in {out}")
    total = sum(len(manifest.examples(shard)) for shard in range(part, manifest.num_shards, parts))
    wanted = config.log.progress
    with tqdm.tqdm(
        total=total, unit=" images", disable=None if wanted is None else not wanted, dynamic_ncols=True
    ) as bar:
        return maker.run(part, parts, bar.update)


def parse_part(text: str) -> tuple[int, int]:
    """`(1, 4)` from "1/4". Raises ConfigError."""
    part, _, parts = text.partition("/")
    if not part.isdecimal() or not parts.isdecimal() or int(part) >= int(parts):
        raise ConfigError(f"--part is {text!r}; write the number of a part, from 0, and of all, like 0/4.")
    return int(part), int(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config=FILE and --config.KEY=VALUE are read as by mim_jax.train.",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the features")
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="of what is stored (default float16)")
    parser.add_argument("--part", default="0/1", help="which part of the work, such as 0/4 (default: all of it)")
    return parser


if __name__ == "__main__":
    main()
