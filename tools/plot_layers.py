"""Draws coding rate and sparsity over an encoder's layers, of one run or of several, such as a CRATE-MAE and a MAE.

    python -m mim_jax.evaluate --workdir=runs/crate_mae --task=coding_rate
    python -m mim_jax.evaluate --workdir=runs/mae --task=coding_rate
    python tools/plot_layers.py runs/crate_mae runs/mae --out layers.png

Reads the newest row of each run's evaluations.jsonl. Bars are one standard deviation over images.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from mim_jax.errors import DataError
from mim_jax.evaluation.records import read_rows

PANELS = {
    "compression": "coding rate in the heads' subspaces, $R^c$",
    "rate": "coding rate of the output, $R$",
    "nonzero": "non-zero entries of the output",
}


def read_layers(run: pathlib.Path) -> dict[str, Any]:
    """The newest row of task `coding_rate` in a run's `evaluations.jsonl`.

    Raises:
      DataError: there is none, or the file is of something else.
    """
    file = run / "evaluations.jsonl"
    try:
        rows = [row for row in read_rows(file) if row["task"] == "coding_rate"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no file of evaluations: {error!r}") from error
    if not rows:
        raise DataError(
            f"{run} has no coding rates; run python -m mim_jax.evaluate --workdir={run} --task=coding_rate first."
        )
    return rows[-1]


def layers_of(row: dict[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Means and standard deviations of one statistic, layer by layer."""
    means = [value for key, value in sorted(row["metrics"].items()) if key.rpartition("_")[0] == name]
    return means, row["details"][f"{name}_std"]


def plot_layers(runs: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """Writes a PNG with a panel for each statistic and a curve for each run.

    Raises:
      DataError: a run has no coding rates.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS))
    for run in runs:
        row = read_layers(run)
        label = f"{run.resolve().name}, {'random' if row['random_init'] else 'step ' + format(row['step'], ',')}"
        for axes, name in zip(panels, PANELS, strict=True):
            means, deviations = layers_of(row, name)
            layers = range(1, len(means) + 1)
            axes.errorbar(layers, means, deviations, marker="o", markersize=4, linewidth=1.2, capsize=2, label=label)
    for axes, title in zip(panels, PANELS.values(), strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run directories")
    parser.add_argument("--out", type=pathlib.Path, help="the PNG to write (default: layers.png in the first run)")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.runs[0] / "layers.png"
    try:
        plot_layers(arguments.runs, out)
    except DataError as error:
        sys.exit(str(error))
    print(out)


if __name__ == "__main__":
    main()
