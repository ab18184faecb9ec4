"""`make demo`: pre-trains MAE on Fashion-MNIST, evaluates it beside its random initialisation, draws what it learnt.

    python tools/demo.py [--workdir runs/demo] [--idx-dir DIR] [--data-dir DIR]

An interrupted demo goes on where it stopped; a finished one prints its results again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from ml_collections import ConfigDict
from plot_run import plot_loss, read_metrics, series
from prepare_data import prepare

import mim_jax
from mim_jax.errors import CheckpointError, ConfigError, DataError, TrainingError

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "demo.py"
TRAIN_SPLIT = "train[:20000]"  # labelled images of the probes: a third, to stay within minutes
PICTURES = ("reconstructions.png", "loss.png")


def run(config: ConfigDict, workdir: pathlib.Path, train_split: str = TRAIN_SPLIT) -> dict[str, Any]:
    """Trains, evaluates and draws; returns what it writes to `summary.json`. Top-1 accuracies are in percent.

    Args:
      train_split: the labelled images that k-NN and linear probe learn from.
    """
    from mim_jax.evaluate import evaluate
    from mim_jax.train import train

    print("Pre-training", flush=True)
    steps = int(train(config, workdir).step)
    split = {"data.train_split": train_split}
    print("Evaluating the pre-trained encoder by k-NN and linear probe", flush=True)
    pretrained = evaluate(workdir, ("knn", "linear", "reconstruct"), overrides=split)
    print("Evaluating the same encoder as it was initialised", flush=True)
    random_init = evaluate(workdir, ("knn", "linear"), random_init=True, overrides=split)

    shutil.copyfile(pretrained["reconstruct"].files[0], workdir / "reconstructions.png")
    plot_loss([workdir], workdir / "loss.png")
    rows = read_metrics(workdir)
    _, losses = series(rows, "loss")
    neighbours = f"top1_k{config.evaluation.knn.k[0]}"
    results = {"pretrained": pretrained, "random_init": random_init}
    summary = {
        "steps": steps,
        "images_per_second": statistics.median(series(rows, "images_per_second")[1]),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "knn_top1": {name: result["knn"].metrics[neighbours] for name, result in results.items()},
        "linear_top1": {name: result["linear"].metrics["top1"] for name, result in results.items()},
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def finished(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any] | None:
    """The summary of an earlier demo with this very config, if it left everything there; else None."""
    files = [workdir / name for name in ("summary.json", "config.json", *PICTURES)]
    if not all(file.is_file() for file in files):
        return None
    if json.loads(files[1].read_text()) != json.loads(json.dumps(config.to_dict())):
        return None
    return json.loads(files[0].read_text())


def report(summary: dict[str, Any], workdir: pathlib.Path) -> str:
    """The closing table and the paths, at most 80 columns wide."""
    knn, linear = summary["knn_top1"], summary["linear_top1"]
    names = (("pretrained", "pre-trained"), ("random_init", "random initialisation"))
    lines = [
        f"{summary['steps']} steps, {summary['images_per_second']:.0f} images/s, "
        f"loss {summary['loss_first']:.3f} -> {summary['loss_last']:.3f}",
        "",
        f"{'Fashion-MNIST test top-1':<28}{'k-NN':>10}{'linear probe':>16}",
        *(f"{label:<28}{knn[name]:>8.1f} %{linear[name]:>14.1f} %" for name, label in names),
        f"{'gain':<28}{knn['pretrained'] - knn['random_init']:>+8.1f}  "
        f"{linear['pretrained'] - linear['random_init']:>+14.1f}",
        "",
    ]
    files = {
        "reconstructions.png": "original, masked, reconstruction",
        "loss.png": "training loss and learning rate",
        "summary.json": "the numbers above",
        "metrics.jsonl": "all metrics of the run",
        "tensorboard": "the same for TensorBoard",
        "checkpoints": "Orbax checkpoints",
        "config.json": "the complete config",
    }
    width = max(len(str(workdir / name)) for name in files) + 2
    lines += [f"{workdir / name!s:<{width}}{what}" for name, what in files.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/demo"), help="where results go")
    parser.add_argument("--idx-dir", type=pathlib.Path, help="folder of the four IDX files, if they are at hand")
    parser.add_argument("--data-dir", help="TFDS directory; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for chatty in ("absl", "jax"):  # Orbax reports every file it writes, JAX every accelerator it does not find
        logging.getLogger(chatty).setLevel(logging.ERROR)
    start = time.monotonic()
    try:
        config = mim_jax.load_config(str(CONFIG), {"data.data_dir": arguments.data_dir})
        summary = finished(config, arguments.workdir)
        if summary is None:
            prepare("fashion_mnist", arguments.data_dir, arguments.idx_dir)
            summary = run(config, arguments.workdir)
            print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes.\n")
        else:
            print(f"The demo is already complete; remove {arguments.workdir} to run it again.\n")
    except (CheckpointError, ConfigError, DataError, TrainingError) as error:
        sys.exit(f"demo: {error}")
    print(report(summary, arguments.workdir))


if __name__ == "__main__":
    main()
