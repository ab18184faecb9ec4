"""What a step of every method of a suite costs beside the baseline's: predicted, counted and measured.

    python tools/step_cost.py --suite=family_a [--batch_size=8] [--windows=3] [--seconds=6] [--methods=hpm,lut]
                              [--out=docs/reproduction] [--config.compute.scan=False ...]

A row of `tools/suites/<suite>.toml` says which recipe is run (`recipe`) and which transformer blocks its method needs
for an image (`stacks`; `elsewhere` what else is much). The prediction is the work of these alone, so that dense work
that a method would hide shows: in what is counted in the traced step, or in the seconds. Results go to
`<out>/<suite>_cost.json` as they come and are never measured twice; `<out>/<suite>_cost.md` is the report. Wants a
quiet machine.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from absl import flags
from benchmark import ROOT, machine, measure
from ml_collections import ConfigDict
from reproduce import choose, read_suite
from suite_report import Row

import mim_jax
from mim_jax.cli import apply_overrides, run_main
from mim_jax.config import override
from mim_jax.errors import ConfigError
from mim_jax.files import replace_text

MARGIN = 0.1  # of the prediction, by which a method's step may cost more


def recipe_config(row: Row, batch_size: int, overrides: dict[str, str]) -> ConfigDict:
    """The config of a row's recipe at a batch that fits on this machine."""
    config = mim_jax.load_config(str(ROOT / "configs" / f"{row.recipe}.py"))
    for key, value in {"batch_size": batch_size, "accumulation_steps": 1}.items():
        override(config, key, value)
    return apply_overrides(config, overrides)


def report(
    title: str, baseline: str, rows: list[Row], measured: dict[str, dict[str, Any]], command: str, batch_size: int
) -> str:
    """The table in Markdown, of the rows that were measured; that of the baseline among them."""
    base_row = next(row for row in rows if row.name == baseline)
    base = measured[baseline]
    lines = [
        f"# {title}: the cost of a step",
        "",
        f"    {command}",
        "",
        f"The papers' recipes at {batch_size} images a step, one after another on one machine; all figures but the",
        f"share of the masks are relative to {baseline}. *Predicted* is the work of the transformer blocks that a",
        "method's tokens need, and of what else it does much of, by hand from its paper: three passes over what is",
        "trained, one over a teacher.",
        "*Counted* are all matrix products and convolutions of the traced step, *measured* its seconds. *Masks and",
        "gather* is the share of choosing what is hidden; where a network has a say in it, with that network's pass.",
        "The optimiser costs the same whatever a method does: in small batches steps differ less than predicted.",
        "",
        "| method | blocks | predicted | counted | measured | measured / predicted | masks and gather |",
        "|---|---|---|---|---|---|---|",
    ]
    dear = []
    for row in rows:
        if row.name not in measured:
            continue
        own = measured[row.name]
        predicted = row.predicted_flops() / base_row.predicted_flops()
        counted = own["flops_per_step"] / base["flops_per_step"]
        cost = base["images_per_second"]["median"] / own["images_per_second"]["median"]
        if cost > (1.0 + MARGIN) * predicted:
            dear.append(row.name)
        lines.append(
            f"| {row.name} | {row.describe_work()} | {predicted:.2f} | {counted:.2f} | {cost:.2f} "
            f"| {cost / predicted:.2f} | {own['masking_share']:.2%} |"
        )
    lines += ["", f"More than {MARGIN:.0%} above the prediction: {', '.join(dear) or 'none'}.", ""]
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the command line's flags."""
    flags.DEFINE_string("suite", None, "A table under tools/suites/.", required=True)
    flags.DEFINE_integer("batch_size", 8, "Images per step.", lower_bound=1)
    flags.DEFINE_integer("windows", 3, "Measurements of each method.", lower_bound=1)
    flags.DEFINE_float("seconds", 6.0, "About how long a measurement lasts.")
    flags.DEFINE_list("methods", [], "Only these rows of the suite, and its baseline.")
    flags.DEFINE_string("out", "docs/reproduction", "Where the report and its numbers go.")


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Measures what is missing and writes the report."""
    given = flags.FLAGS
    if config_path:
        raise ConfigError("A suite names its recipes itself; leave out --config.")
    suite, rows = read_suite(given.suite)
    baseline = suite["baseline"]
    chosen = [row for row in choose(rows, given.methods and [baseline, *given.methods], given.suite) if row.recipe]
    if baseline not in [row.name for row in chosen]:
        raise ConfigError(
            f"The suite {given.suite} names no recipe for {baseline}, which all others are compared with."
        )
    chosen.sort(key=lambda row: row.name != baseline)
    out = pathlib.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{given.suite}_cost.json"
    found = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
    settings = {"batch_size": given.batch_size, "overrides": overrides}
    if found["rows"] and found["settings"] != settings:
        raise ConfigError(f"{file} was measured with {found['settings']}; give the same, or another --out.")
    changes = "".join(f" --config.{key}={value}" for key, value in overrides.items())
    command = f"python tools/step_cost.py --suite={given.suite} --batch_size={given.batch_size}{changes}"
    for row in chosen:
        if row.name in found["rows"]:
            continue
        config = recipe_config(row, given.batch_size, overrides)
        (found["rows"][row.name],) = measure(config, row.recipe, [], given.windows, given.seconds)
        content = {"settings": settings, "machine": machine(), "rows": found["rows"]}
        replace_text(file, json.dumps(content, indent=1) + "\n")
    text = report(suite["title"], baseline, rows, found["rows"], command, given.batch_size)
    replace_text(out / f"{given.suite}_cost.md", text)
    print(text)


if __name__ == "__main__":
    define_flags()
    run_main(main)
