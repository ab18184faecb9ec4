"""Plots how the time of a training step grows with the batch, with the tokens kept and with depth.

    python tools/growth.py [--name=mae_vit_b16_in1k] [--out=docs/images/growth.png] [--config.model.width=384 ...]

Each point is the fastest of `--repeats` steps. The dashed line is what the work counted from the shapes predicts: the
FLOPs of each point at the first point's rate.
"""

from __future__ import annotations

import json
import pathlib
import time

import jax
import matplotlib
from absl import flags
from benchmark import IMAGENET_EXAMPLES, synthetic_batch

import mim_jax
from mim_jax.cli import apply_overrides, run_main
from mim_jax.training.flops import count_flops
from mim_jax.training.program import Program
from mim_jax.training.sharding import make_mesh

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parents[1]
SERIES = {
    "images in a batch": ("batch_size", (4, 8, 16, 32)),
    "share of tokens hidden": ("mask_ratio", (0.9, 0.75, 0.5, 0.25)),
    "blocks of the encoder": ("model.depth", (3, 6, 12, 24)),
}


def step_cost(name: str, overrides: dict, changes: dict, repeats: int) -> tuple[float, float]:
    """Seconds of the fastest of a few steps of a config with changes, and the FLOPs of a step."""
    config = mim_jax.load_config(str(ROOT / "configs" / f"{name}.py"), {"batch_size": 4, "accumulation_steps": 1})
    config = apply_overrides(config, overrides)
    for key, value in changes.items():
        mim_jax.config.override(config, key, value)
    program = Program(config, make_mesh(config.mesh), IMAGENET_EXAMPLES)
    state, batch = program.fresh_state(), synthetic_batch(program)
    flops = count_flops(program.step_function(), state, batch)
    step = program.jitted_step()
    best = float("inf")
    for _ in range(repeats + 1):  # the first one compiles
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        best = min(best, time.perf_counter() - start)
    return best, flops


def define_flags() -> None:
    """Defines the command line's flags."""
    flags.DEFINE_string("name", "mae_vit_b16_in1k", "A config under configs/.")
    flags.DEFINE_string("out", "growth.png", "Where the plot goes; the numbers go beside it as JSON.")
    flags.DEFINE_integer("repeats", 3, "Steps per point.")


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Measures all series and draws them."""
    given = flags.FLAGS
    figure, axes = plt.subplots(1, len(SERIES), figsize=(12, 3.6), layout="constrained")
    measured = {}
    for axis, (label, (key, values)) in zip(axes, SERIES.items(), strict=True):
        costs = [step_cost(given.name, overrides, {key: value}, given.repeats) for value in values]
        seconds, flops = zip(*costs, strict=True)
        predicted = [seconds[0] * work / flops[0] for work in flops]
        measured[key] = [
            {"value": value, "seconds": second, "predicted": guess, "flops": work}
            for value, second, guess, work in zip(values, seconds, predicted, flops, strict=True)
        ]
        print(label)
        for row in measured[key]:
            print(f"  {row['value']:>6}  {row['seconds']:7.3f} s, {row['predicted']:7.3f} s by FLOPs", flush=True)
        sizes = [1 - value for value in values] if key == "mask_ratio" else list(values)
        axis.plot(sizes, seconds, "o-", label="measured")
        axis.plot(sizes, predicted, "--", color="0.6", label="by FLOPs")
        axis.set(xlabel=label.replace("hidden", "kept"), ylabel="seconds per step", ylim=(0, None), xlim=(0, None))
    axes[0].legend(frameon=False)
    out = pathlib.Path(given.out)
    figure.savefig(out, dpi=120)
    out.with_suffix(".json").write_text(json.dumps({"config": given.name, "series": measured}, indent=1) + "\n")


if __name__ == "__main__":
    define_flags()
    run_main(main)
