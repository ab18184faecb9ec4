"""Where arrays live: the device mesh, and one table of rules from parameter paths to partition specs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.placement import BATCH_AXES
from mim_jax.training.paths import map_with_name

AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = P(BATCH_AXES)

# First match wins; a leaf that matches none has its largest dimension sharded over "fsdp". The leading None is the
# layer axis. Optimiser moments end in the same path as their parameter, so they follow it.
RULES = (
    (r"attention/qkv/kernel$", P(None, "fsdp", None, "tensor", None)),
    (r"attention/qkv/bias$", P(None, None, "tensor", None)),
    (r"attention/(query|value)_bias$", P(None, "tensor", None)),
    (r"attention/(query|key|value|subspaces)/kernel$", P(None, "fsdp", "tensor", None)),
    (r"attention/(query|key|value)/bias$", P(None, "tensor", None)),
    (r"attention/out/kernel$", P(None, "tensor", None, "fsdp")),
    (r"mlp/fc1/kernel$", P(None, "fsdp", "tensor")),
    (r"mlp/fc1/bias$", P(None, "tensor")),
    (r"mlp/fc2/kernel$", P(None, "tensor", "fsdp")),
    (r"relative_bias/table$", P(None, "tensor")),
    (r"(bias|scale|gamma\d|token)$", P()),
)
_SMALL = 2**12  # elements; smaller leaves are whole on "fsdp", since gathering them costs more than it saves


def make_mesh(config: ConfigDict) -> Mesh:
    """A mesh over all devices from `config` (`data`, `fsdp`, `tensor`; one of them may be -1: the rest).

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    sizes = {axis: config[axis] for axis in AXES}
    devices = jax.device_count()
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or fixed < 1 or (free and devices % fixed) or (not free and fixed != devices):
        shape = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ConfigError(f"mesh ({shape}) does not tile {devices} devices; the product must equal it (one may be -1).")
    if free:
        sizes[free[0]] = devices // fixed
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function`, to be jitted, with the activations it computes kept where `mesh` splits the batch."""

    @functools.wraps(function)
    def placed(*args: Any, **kwargs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return placed


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over "data" and "fsdp" along their leading axis."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's slice of a batch."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def host_array(x: jax.Array) -> np.ndarray:
    """The whole of an array that may lie on several hosts, on each of them; all have to ask."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def check_batch_size(batch_size: int, mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Raises ConfigError unless micro-batches divide evenly over devices and processes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or accumulation_steps < 1 or batch_size % (accumulation_steps * shards):
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by accumulation_steps {accumulation_steps} times the {shards} "
            "devices it is split over (mesh data x fsdp); change one of them."
        )


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of an (abstract) state."""
    return map_with_name(lambda name, leaf: NamedSharding(mesh, _spec(name, leaf.shape, mesh)), tree)


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    small = math.prod(shape) < _SMALL
    for pattern, spec in RULES:
        if re.search(pattern, name) and len(spec) <= len(shape):
            # A bias goes with its kernel's "tensor" axis however small it is: it is added to a product split over it.
            axes = (None if small and axis == "fsdp" else axis for axis in spec)
            return P(*(_fit(axis, size, mesh) for axis, size in zip(axes, shape, strict=False)))
    if small:
        return P()
    divisible = [dim for dim, size in enumerate(shape) if size % mesh.shape["fsdp"] == 0]
    if not divisible:
        return P()
    largest = max(divisible, key=lambda dim: shape[dim])
    return P(*("fsdp" if dim == largest else None for dim in range(len(shape))))


def _fit(axis: str | None, size: int, mesh: Mesh) -> str | None:
    return axis if axis is not None and size % mesh.shape[axis] == 0 else None
