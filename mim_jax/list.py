"""What there is: methods and tasks, and which backbones each works with.

    python -m mim_jax.list [--matrix]

Without `--matrix` it prints a line about each method and task; with it, the table of backbones, made from what each
method needs of an encoder and what each backbone offers.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Sequence

from mim_jax.cli import EXIT_USAGE, show_own_logs_only
from mim_jax.config import objective_class, objective_names
from mim_jax.contract import Objective
from mim_jax.models.backbone import BACKBONES, NEEDS

_WIDTH = 80
_OWN = "has an encoder of its own"


def objectives() -> dict[str, type[Objective]]:
    """Every method and task by its name, methods first."""
    return {name: objective_class(**{kind: name}) for kind in ("method", "task") for name in objective_names(kind)}


def supported(objective: type[Objective]) -> list[str]:
    """The backbones an objective works with."""
    return [name for name, offers in BACKBONES.items() if objective.encoder_needs in offers]


def matrix() -> str:
    """Objectives by backbones as lines of text, and why a cell is empty."""
    rows = objectives()
    width = max(map(len, rows))
    lines = [" ".join(["".ljust(width), *BACKBONES])]
    for name, objective in rows.items():
        cells = [("x" if backbone in supported(objective) else ".").center(len(backbone)) for backbone in BACKBONES]
        lines.append(" ".join([name.ljust(width), *cells]).rstrip())
    lines += ["", "x: they work together. What each asks of an encoder:"]
    for need, meaning in {**NEEDS, None: _OWN}.items():
        names = [name for name, objective in rows.items() if objective.encoder_needs == need]
        if names:
            lines.extend(_wrapped(f"{meaning}: {', '.join(names)}."))
    return "\n".join(lines)


def summary() -> str:
    """The first line of each module's docstring, by name."""
    rows = objectives()
    width = max(map(len, rows)) + 2
    lines = []
    for name, objective in rows.items():
        said = inspect.getdoc(sys.modules[objective.__module__]).partition("\n")[0]
        lines.extend(_wrapped(f"{name.ljust(width)}{said}", " " * width))
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, drop_whitespace=True)


def main(argv: Sequence[str]) -> int:
    """Prints what was asked for; returns the exit code."""
    show_own_logs_only()
    if argv[1:] not in ([], ["--matrix"]):
        print(__doc__.strip(), file=sys.stderr)
        return EXIT_USAGE
    print(matrix() if argv[1:] else summary())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
