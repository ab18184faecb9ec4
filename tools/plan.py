"""Plans a run on a machine that is not here: memory, collectives and time of the real training step.

    python tools/plan.py --config configs/mae_vit_h14_in1k.py --mesh data=64,fsdp=4 --device tpu-v5e
    python tools/plan.py --config configs/mae_vit_l16_in1k.py --mesh fsdp=8 --device h100 --config.compute.remat=full

The step is traced, partitioned and compiled for that many simulated CPU devices; nothing of its size is allocated and
no data is read. bfloat16 and `compute.scan` are planned with unless --config.compute says otherwise: scanning does not
change the numbers, as loops count as often as they turn, and compiles one block instead of all.

How to read it: state, FLOPs and collectives are exact for the compiled step. Activations and temporaries are XLA:CPU's,
which computes bfloat16 products in float32 and does not schedule for least memory: an upper estimate for accelerators.
Times are a roofline over the makers' figures (mim_jax/planning/devices.py): the largest of matrix products at
--attainable of the peak, memory traffic, and collectives as rings. Input, checkpoints and restarts come on top.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from mim_jax import data
from mim_jax.cli import config_from_command_line, split_config_arguments
from mim_jax.errors import ConfigError, DataError
from mim_jax.files import replace_text
from mim_jax.planning.compilation import compile_step
from mim_jax.planning.devices import DEVICES, find_device
from mim_jax.planning.plan import Plan, make_plan
from mim_jax.planning.report import report
from mim_jax.training.program import Program
from mim_jax.training.sharding import AXES, make_mesh

_AS_ON_THE_DEVICE = {"compute.dtype": "bfloat16", "compute.scan": "True"}
# Training images of data sets that need not be here to be planned with.
_PUBLISHED_SIZES = {"tfds:imagenet2012": 1_281_167}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    path, overrides, rest = split_config_arguments(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(rest)
    try:
        mesh = parse_mesh(arguments.mesh)
        find_device(arguments.device)
        simulate_devices(math.prod(mesh.values()))
        config = config_from_command_line(path, {**_AS_ON_THE_DEVICE, **overrides})
        config.mesh.update(mesh)
        made = plan(config, arguments.device, arguments.examples, arguments.attainable)
        if arguments.json is not None:
            replace_text(arguments.json, json.dumps(made.as_dict(), indent=1) + "\n")
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(report(made, f"{path}, {config.duration}"))


def plan(config: ConfigDict, device_name: str, examples: int | None = None, attainable: float = 0.5) -> Plan:
    """The plan of `config` on its mesh of simulated devices.

    Raises:
      ConfigError: the config cannot be run on that mesh, or there are no figures for the device.
      DataError: neither `examples` is given nor can the data be looked up.
    """
    if not 0.0 < attainable <= 1.0:
        raise ConfigError(f"--attainable is {attainable}; it is a share of the peak in (0, 1].")
    device = find_device(device_name)
    program = Program(config, make_mesh(config.mesh), num_examples(config, examples))
    return make_plan(program, compile_step(program), device_name, device, attainable)


def num_examples(config: ConfigDict, given: int | None) -> int:
    """Training images, in which epochs are counted: as given, as published, or looked up. Raises DataError."""
    if given is not None:
        if given < 1:
            raise ConfigError(f"--examples is {given}; give the number of training images.")
        return given
    if config.data.source in _PUBLISHED_SIZES and config.data.train_split == "train":
        return _PUBLISHED_SIZES[config.data.source]
    return data.data_info(config).num_train_examples


def parse_mesh(text: str) -> dict[str, int]:
    """`{"data": 64, "fsdp": 4, "tensor": 1}` from "data=64,fsdp=4". Raises ConfigError."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"--mesh has the part {part!r}; write sizes of {', '.join(AXES)}, like data=64,fsdp=4.")
        sizes[axis] = int(size)
    return sizes


def simulate_devices(count: int) -> None:
    """Makes JAX see `count` CPU devices; call it before anything touches a device."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config=FILE and --config.KEY=VALUE are read as by mim_jax.train.",
    )
    parser.add_argument("--mesh", required=True, help="devices by axis, such as data=64,fsdp=4")
    parser.add_argument("--device", required=True, help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--examples", type=int, help="training images (default: as published, or as the data says)")
    parser.add_argument("--attainable", type=float, default=0.5, help="share of the peak FLOP/s reached (default 0.5)")
    parser.add_argument("--json", type=pathlib.Path, help="also write all numbers to this file")
    return parser


if __name__ == "__main__":
    main()
