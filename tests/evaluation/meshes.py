"""Meshes of the simulated devices."""

import jax
from jax.sharding import AxisType, Mesh


def mesh_of(devices: int) -> Mesh:
    """A data-parallel mesh of that many devices."""
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh((devices, 1, 1), axes, devices=jax.devices()[:devices], axis_types=(AxisType.Auto,) * 3)
