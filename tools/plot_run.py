"""Draws a run's training loss and learning rate from its metrics.jsonl.

    python tools/plot_run.py runs/demo
    python tools/plot_run.py runs/mae runs/simmim --out both.png

The first writes runs/demo/loss.png.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from mim_jax.errors import DataError


def read_metrics(run: pathlib.Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl` in a run directory; values are floats, non-finite ones included.

    Raises:
      DataError: there is no such file, or a line of it is no JSON object.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise DataError(f"There is no {file}; give the directory a run wrote (--workdir of mim_jax.train).")
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            rows.append({name: float(value) for name, value in json.loads(line).items()})
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{file}, line {number} is no row of metrics: {error}") from error
    return rows


def series(rows: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, from the rows that have it."""
    present = [row for row in rows if name in row]
    return [row["step"] for row in present], [row[name] for row in present]


def plot_loss(runs: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """Writes a PNG: the loss of every run above, the learning rate below.

    Raises:
      DataError: a run has no metrics or logged no loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for run in runs:
        rows = read_metrics(run)
        steps, losses = series(rows, "loss")
        if not steps:
            raise DataError(f"{run / 'metrics.jsonl'} has no loss; the run has not logged a training step yet.")
        loss_axes.plot(steps, losses, linewidth=1.2, label=run.resolve().name)
        rate_axes.plot(*series(rows, "lr"), linewidth=1.2)
    loss_axes.set_ylabel("training loss")
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_xlabel("step")
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (loss_axes, rate_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    if len(runs) > 1:
        loss_axes.legend(frameon=False)
    figure.savefig(out, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run directories")
    parser.add_argument("--out", type=pathlib.Path, help="the PNG to write (default: loss.png in the first run)")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.runs[0] / "loss.png"
    try:
        plot_loss(arguments.runs, out)
    except DataError as error:
        sys.exit(str(error))
    print(out)


if __name__ == "__main__":
    main()
