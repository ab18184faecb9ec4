"""Public figures of accelerators; the one table a plan is computed from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mim_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Device:
    """One chip, in bytes, seconds and FLOPs; bandwidths are decimal, as makers state them.

    `link_bandwidth` is what one ring collective can send: on a torus the two ports of one of its axes. Between domains
    (a TPU pod, an NVLink node) every chip has `outer_bandwidth`; None where no public figure was found.
    """

    peak_flops: float  # dense bfloat16
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float  # one way
    domain: int  # chips that links connect
    outer_bandwidth: float | None  # one way

    def ring_bandwidth(self, group: Sequence[int]) -> float:
        """Bytes a second that each device of a ring can send, the slowest hop counted.

        Neighbours in the order of device numbers are taken to share a domain. A ring that leaves it crosses once for
        all its members there, so these have their outer bandwidths together.

        Raises:
          ConfigError: the ring leaves the domain, and there is no figure for what lies outside.
        """
        inside = [device for device in group if device // self.domain == group[0] // self.domain]
        if len(inside) == len(group):
            return self.link_bandwidth
        if self.outer_bandwidth is None:
            raise ConfigError(f"Device has no public network figure beyond {self.domain} chips; plan for fewer.")
        return min(self.link_bandwidth, len(inside) * self.outer_bandwidth)


DEVICES = {
    # cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB, 819 GBps, ICI 400 GBps both ways over 4 ports of a 2D torus,
    # pods of 256, 6.4 Tbps of data-centre network a pod.
    "tpu-v5e": Device(197e12, 16e9, 819e9, 100e9, 256, 3.125e9),
    # cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GB, 2765 GBps, ICI 1200 GBps both ways over the 6 ports of a 3D
    # torus, pods of 8960, 50 Gbps of data-centre network a chip.
    "tpu-v5p": Device(459e12, 95e9, 2765e9, 200e9, 8960, 6.25e9),
    # cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB, 1638 GBps, ICI 800 GBps both ways over 4 ports of a 2D torus,
    # pods of 256.
    "tpu-v6e": Device(918e12, 32e9, 1638e9, 200e9, 256, None),
    # nvidia.com/en-us/data-center/h100 (SXM): 1979 TFLOPS with sparsity, so 989 dense; 80 GB, 3.35 TB/s, NVLink
    # 900 GB/s both ways. NVIDIA DGX H100 data sheet: 8 GPUs and eight 400 Gb/s adapters a node.
    "h100": Device(989e12, 80e9, 3350e9, 450e9, 8, 50e9),
    # nvidia.com/en-us/data-center/h200 (SXM): as H100 with 141 GB and 4.8 TB/s; DGX H200 has the network of DGX H100.
    "h200": Device(989e12, 141e9, 4800e9, 450e9, 8, 50e9),
}


def find_device(name: str) -> Device:
    """The device of that name; raises ConfigError naming those there are."""
    if name not in DEVICES:
        raise ConfigError(f"There are no figures for device {name!r}; choose one of {', '.join(DEVICES)}.")
    return DEVICES[name]
