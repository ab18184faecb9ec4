"""Host arrays onto the devices of a mesh and back, alike with one process and with many."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

_BATCH_AXES = ("data", "fsdp")


class Placement:
    """Puts arrays on a mesh: split along their leading axis, or whole on every device."""

    def __init__(self, mesh: Mesh):
        self.batch = NamedSharding(mesh, P(_BATCH_AXES))
        self.whole = NamedSharding(mesh, P())
        self.shards = int(np.prod([mesh.shape[axis] for axis in _BATCH_AXES]))

    def multiple(self, size: int) -> int:
        """The smallest multiple of the number of shards that is at least `size`."""
        return -(-size // self.shards) * self.shards

    def pad(self, array: np.ndarray, size: int) -> np.ndarray:
        """`array` with zero rows appended up to `size`."""
        return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])

    def put(self, batch: Any) -> Any:
        """Global arrays from this process's rows of a batch (a pytree of arrays)."""
        return jax.make_array_from_process_local_data(self.batch, batch)

    def split(self, array: np.ndarray) -> jax.Array:
        """An array that every process has whole, split over the devices along its leading axis."""
        return jax.make_array_from_process_local_data(self.batch, array, array.shape)

    def replicate(self, tree: Any) -> Any:
        """Arrays that every process has whole, whole on every device."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.whole, x, x.shape), tree)

    def fetch(self, array: jax.Array) -> np.ndarray:
        """The whole array on the host of every process, however it is split."""
        if not array.is_fully_addressable and not array.is_fully_replicated:
            array = jax.jit(lambda x: x, out_shardings=self.whole)(array)
        return jax.device_get(array)
