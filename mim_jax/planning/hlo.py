"""Reads the text of a compiled program: which instructions run how often, on arrays of which size."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(condition|body|to_apply|calls|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: str  # the type as text, such as "f32[16,26]{1,0}" or a tuple of these
    operands: tuple[str, ...]
    attributes: str

    @functools.cached_property
    def num_bytes(self) -> float:
        """Size of the result on one device; of all elements of a tuple together."""
        return sum(_width(dtype) * math.prod(shape) for dtype, shape in arrays(self.result))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a result that is one array."""
        return arrays(self.result)[0][1]

    @property
    def source(self) -> str:
        """The JAX operation it comes from, as far as the compiler remembers."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


class Module:
    """A program, by computation."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if match := _HEADER.match(line):
                current = self.computations.setdefault(match[2], {})
                if match[1]:
                    self.entry = match[2]
            elif match := _INSTRUCTION.match(line):
                instruction = _parse(match[2], match[3])
                current[instruction.name] = instruction

    def executed(self) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
        """Every instruction that runs, with its computation and how often it runs in one call of the program.

        Raises:
          ValueError: the trip count of a loop cannot be read.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield instruction, computation, times
            called = _called(instruction)
            if instruction.opcode == "while":
                yield from self._executed(called["body"][0], times * self._trip_count(instruction))
            elif instruction.opcode in ("call", "conditional", "fusion"):
                for bodies in called.values():
                    for body in bodies:
                        yield from self._executed(body, times)

    def _trip_count(self, loop: Instruction) -> int:
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(match[1])
        # Early on it is not noted yet. JAX's loops of known length count up from zero to a constant.
        condition = _called(loop)["condition"][0]
        instructions = self.computations[condition].values()
        bounds = [i for i in instructions if i.opcode == "constant" and i.result.startswith("s32[]")]
        if len(bounds) != 1 or not any(i.opcode == "compare" for i in instructions):
            raise ValueError(f"The loop condition {condition} is not that of a loop of known length.")
        return int(bounds[0].operands[0])


def arrays(result: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element types and shapes of a type as text."""
    return [(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(result)]


def users(computation: dict[str, Instruction], name: str) -> list[Instruction]:
    """The instructions of a computation that read `name`."""
    return [instruction for instruction in computation.values() if name in instruction.operands]


def _parse(name: str, text: str) -> Instruction:
    text = re.sub(r"/\*.*?\*/", "", text)
    opcode = _OPCODE.search(text)
    if opcode is None:
        return Instruction(name, "", text, (), "")
    start = opcode.end()
    depth, end = 1, start
    while depth and end < len(text):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    operands = re.findall(r"%([\w.\-]+)", text[start : end - 1]) or [text[start : end - 1]]
    return Instruction(name, opcode[1], text[: opcode.start()].strip(), tuple(operands), text[end:])


def _called(instruction: Instruction) -> dict[str, list[str]]:
    found = _CALLED.findall(instruction.attributes)
    return {kind: [name.strip().lstrip("%") for name in (many or one).split(",")] for kind, many, one in found}


def _width(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    return int(re.search(r"\d+", dtype)[0]) / 8  # bf16, f32, s32, f8e4m3fn, ...
