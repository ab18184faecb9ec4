"""What an import did, for people to read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable


class WeightsWarning(UserWarning):
    """Weights were imported, but not everything found a place or a value."""


@dataclasses.dataclass
class Report:
    """What was loaded, resized, copied, left random and left out; `str(report)` says it in a few lines."""

    origin: str
    layout: str
    loaded: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # part: (arrays, numbers)
    resized: list[str] = dataclasses.field(default_factory=list)
    copied: dict[str, str] = dataclasses.field(default_factory=dict)  # part: the part whose values it took
    random: dict[str, int] = dataclasses.field(default_factory=dict)  # part or leaf: numbers left as initialised
    nonfinite: list[str] = dataclasses.field(default_factory=list)  # tensors loaded with NaN or infinity inside
    unused: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # why: tensors of the source
    ignored: list[str] = dataclasses.field(default_factory=list)  # what never has a counterpart: buffers, optimiser
    notes: list[str] = dataclasses.field(default_factory=list)

    def warnings(self) -> list[str]:
        """One sentence for everything that one would want to know of before trusting the result."""
        messages = [f"{part} is not in the source and was copied from {twin}" for part, twin in self.copied.items()]
        messages += [
            f"{name} is not in the source: left random ({count:,} numbers)" for name, count in self.random.items()
        ]
        if self.nonfinite:
            messages.append(f"loaded though not finite: {', '.join(group_names(self.nonfinite))}")
        messages += [f"{why}: {', '.join(group_names(names))}" for why, names in self.unused.items()]
        return messages

    def __str__(self) -> str:
        arrays = sum(arrays for arrays, _ in self.loaded.values())
        total = sum(count for _, count in self.loaded.values())
        lines = [f"Weights from {self.origin}, layout {self.layout}: {arrays} arrays, {total:,} numbers."]
        lines += [
            f"  loaded {part}: {count:,} numbers in {arrays} arrays" for part, (arrays, count) in self.loaded.items()
        ]
        lines += [f"  resized {text}" for text in self.resized]
        lines += [f"  copied {part} from {twin}" for part, twin in self.copied.items()]
        lines += [f"  left random {name}: {count:,} numbers" for name, count in self.random.items()]
        if self.nonfinite:
            lines.append(f"  not finite: {', '.join(group_names(self.nonfinite))}")
        lines += [f"  not used ({why}): {', '.join(group_names(names))}" for why, names in self.unused.items()]
        if self.ignored:
            lines.append(f"  ignored {', '.join(group_names(self.ignored))}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def group_names(names: Iterable[str]) -> list[str]:
    """Names that differ by one layer number are joined: `blocks.{0-11}.norm1.bias`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        match = re.search(r"(?<![^.])\d+(?![^.])", name)
        key = (name[: match.start()], name[match.end() :]) if match else (name, "")
        groups.setdefault(key, []).extend([int(match.group())] if match else [])
    return [f"{before}{_ranges(numbers)}{after}" for (before, after), numbers in groups.items()]


def _ranges(numbers: list[int]) -> str:
    if not numbers:
        return ""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
