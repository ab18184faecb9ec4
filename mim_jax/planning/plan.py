"""From what a step uses and what a device can do: how long a run will take, and whether it fits."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mim_jax.planning.compilation import Usage
from mim_jax.planning.devices import Device
from mim_jax.training.program import Program


@dataclasses.dataclass(frozen=True)
class Plan:
    """Planned, not measured: a roofline over public figures of the device."""

    device_name: str
    mesh: dict[str, int]
    batch_size: int
    total_steps: int
    attainable: float  # share of the device's peak FLOP/s that matrix products are taken to reach
    usage: Usage
    device: Device

    @property
    def devices(self) -> int:
        """How many there are."""
        size = 1
        for length in self.mesh.values():
            size *= length
        return size

    @property
    def bytes_per_device(self) -> int:
        """State, batch and temporaries."""
        usage = self.usage
        return usage.state_bytes_per_device + usage.batch_bytes_per_device + usage.temporary_bytes

    @property
    def fits(self) -> bool:
        """Whether these fit a device's memory."""
        return self.bytes_per_device <= self.device.memory_bytes

    @property
    def compute_seconds(self) -> float:
        """Matrix products at the attainable share of the peak."""
        return self.usage.flops_per_device / (self.attainable * self.device.peak_flops)

    @property
    def memory_seconds(self) -> float:
        """Operands and results of matrix products moved once each, and the state read and written once."""
        moved = self.usage.product_bytes + 2 * self.usage.state_bytes_per_device
        return moved / self.device.memory_bandwidth

    @property
    def network_seconds(self) -> float:
        """All collectives one after the other, as rings."""
        return sum(c.sent_bytes / self.device.ring_bandwidth(c.group) for c in self.usage.collectives)

    @property
    def step_seconds(self) -> float:
        """The largest of the three: each hides behind the slowest."""
        return max(self.compute_seconds, self.memory_seconds, self.network_seconds)

    @property
    def unhidden_seconds(self) -> float:
        """Their sum: nothing hides."""
        return self.compute_seconds + self.memory_seconds + self.network_seconds

    @property
    def bottleneck(self) -> str:
        """Which of the three is the largest."""
        seconds = {"compute": self.compute_seconds, "memory": self.memory_seconds, "network": self.network_seconds}
        return max(seconds, key=seconds.get)

    @property
    def images_per_second(self) -> float:
        """Of all devices."""
        return self.batch_size / self.step_seconds

    @property
    def run_hours(self) -> float:
        """The config's duration."""
        return self.total_steps * self.step_seconds / 3600

    @property
    def device_hours(self) -> float:
        """`run_hours` of all devices."""
        return self.run_hours * self.devices

    def exchanges(self) -> list[dict[str, Any]]:
        """Collectives by kind and number of devices that take part: how many a step, and bytes of one device."""
        rows: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
        for c in self.usage.collectives:
            row = rows[c.kind, len(c.group)]
            row[0] += c.times
            row[1] += c.times * c.num_bytes
            row[2] += c.sent_bytes
        names = ("kind", "devices", "count", "bytes", "sent_bytes")
        return [dict(zip(names, (*key, *row), strict=True)) for key, row in sorted(rows.items())]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        usage = {f.name: getattr(self.usage, f.name) for f in dataclasses.fields(self.usage) if f.name != "collectives"}
        own = ("device_name", "mesh", "devices", "batch_size", "total_steps", "attainable")
        times = ("compute_seconds", "memory_seconds", "network_seconds", "step_seconds", "unhidden_seconds")
        rest = ("bottleneck", "images_per_second", "run_hours", "device_hours", "bytes_per_device", "fits")
        figures = {name: getattr(self, name) for name in (*own, *times, *rest)}
        return {**figures, **usage, "collectives": self.exchanges(), "device": dataclasses.asdict(self.device)}


def make_plan(program: Program, usage: Usage, device_name: str, device: Device, attainable: float) -> Plan:
    """The plan of a program whose step was compiled."""
    config: ConfigDict = program.config
    return Plan(
        device_name=device_name,
        mesh=dict(program.mesh.shape),
        batch_size=config.batch_size,
        total_steps=program.total_steps,
        attainable=attainable,
        usage=usage,
        device=device,
    )
