"""The collectives of a partitioned program: kind, size, how often, and which devices take part."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import numpy as np

from mim_jax.planning.hlo import Instruction, Module, users

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_LAYOUT = ("reshape", "bitcast", "copy", "transpose", "convert")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange; `num_bytes` is the whole array on one device: gathered, or before it is scattered."""

    kind: str
    num_bytes: float
    group: tuple[int, ...]  # the devices of the first group
    times: int  # in one step
    source: str

    @property
    def sent_bytes(self) -> float:
        """What each device sends in one step with ring algorithms (Thakur et al. 2005)."""
        size = len(self.group)
        if self.kind == "collective-permute":
            return self.times * self.num_bytes
        rounds = 2 if self.kind == "all-reduce" else 1
        return self.times * rounds * self.num_bytes * (size - 1) / size


def collectives(module: Module, num_devices: int) -> list[Collective]:
    """What a step exchanges, as the SPMD partitioner wrote it.

    The partitioner writes a reduce-scatter as an all-reduce whose result is only sliced; TPU and GPU compilers make one
    of the two, and so does this. (XLA:CPU does not: it really reduces all.)
    """
    found: dict[tuple, int] = collections.Counter()
    for instruction, computation, times in module.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        group = first_group(instruction.attributes, num_devices)
        if len(group) == 1:
            continue
        num_bytes = instruction.num_bytes
        if kind == "all-reduce" and _only_sliced(computation, instruction):
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            num_bytes *= len(group)
        found[kind, num_bytes, group, instruction.source] += times
    return [Collective(kind, size, group, times, source) for (kind, size, group, source), times in found.items()]


def first_group(attributes: str, num_devices: int) -> tuple[int, ...]:
    """Devices of the first group in any of the notations of XLA's `replica_groups`.

    Raises:
      ValueError: a notation unknown here.
    """
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        pairs = re.findall(r"\{(\d+),(\d+)", match[1] + "}")
        moved = [(int(a), int(b)) for a, b in pairs if a != b]
        return moved[0] if moved else (0,)
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(i) for i in match[1].split(","))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return tuple(_iota(match[2]).reshape(_numbers(match[1]))[0].tolist())
    if match := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", attributes):
        return _mesh_group(match[1], match[2], match[3])
    if "replica_groups={}" in attributes:
        return tuple(range(num_devices))
    raise ValueError(f"replica_groups in an unknown notation: {attributes[:200]}")


def _mesh_group(axes: str, device_ids: str | None, grouped: str) -> tuple[int, ...]:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = _iota(device_ids or f"[{math.prod(sizes.values())}]").reshape(tuple(sizes.values()))
    index = []
    parts = {name: (before, part) for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", grouped)}
    for name, size in sizes.items():
        if name not in parts:
            index.append([0])
        elif not parts[name][1]:
            index.append(list(range(size)))
        else:  # a part of an axis: `part` neighbours at the stride that the sizes behind it leave
            before, part = (int(n) for n in parts[name])
            stride = size // (before * part)
            index.append([i * stride for i in range(part)])
    return tuple(ids[np.ix_(*index)].ravel().tolist())


def _iota(text: str) -> np.ndarray:
    shape, _, order = text.partition("T")
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return (ids.transpose(_numbers(order)) if order else ids).ravel()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _only_sliced(computation: dict[str, Instruction], instruction: Instruction) -> bool:
    readers = users(computation, instruction.name)
    return bool(readers) and all(
        reader.opcode == "dynamic-slice" or (reader.opcode in _LAYOUT and _only_sliced(computation, reader))
        for reader in readers
    )
