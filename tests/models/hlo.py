"""Reads compiled programs for what they should not do."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mim_jax.planning.hlo import Instruction, Module


def moved_arrays(text: str) -> Iterator[Instruction]:
    """The transposes and copies of a compiled program that change the order of an array's axes in memory.

    Many a transpose changes the names of axes only, and their layout so that nothing moves.
    """
    for computation in Module(text).computations.values():
        for instruction in computation.values():
            if instruction.opcode not in ("transpose", "copy"):
                continue
            operand = _order(computation[instruction.operands[0]].result)
            result = _order(instruction.result)
            if instruction.opcode == "transpose":
                axes = re.search(r"dimensions=\{([\d,]*)\}", instruction.attributes)[1].split(",")
                result = [int(axes[axis]) for axis in result]
            if operand != result:
                yield instruction


def _order(result: str) -> list[int]:
    """Axes from the fastest to the slowest; those of length one, which are nowhere, left out."""
    shape, layout = re.match(r"\w+\[([\d,]*)\](?:\{([\d,]*))?", result).groups()
    sizes = [int(n) for n in shape.split(",") if n]
    order = [int(axis) for axis in (layout or "").split(",") if axis] or list(range(len(sizes)))[::-1]
    return [axis for axis in order if sizes[axis] > 1]
