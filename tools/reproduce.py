"""Trains every method of a suite on Fashion-MNIST at equal steps and writes what was seen beside what its paper claims.

    python tools/reproduce.py --suite=family_a [--seeds=3] [--steps=500] [--methods=mae,hpm] [--out=docs/reproduction]
                              [--config.data.data_dir=DIR ...]

A suite is a table in `tools/suites/`. Each (method, seed) is trained by its Fashion-MNIST config for `--steps` batches
of `--batch_size`, those that others learn from first; then its frozen encoder is evaluated by k-NN and a linear probe,
beside the same encoder as it was initialised. Results go to `<out>/<suite>.json` as they come and are never computed
twice: an interrupted suite goes on where it stopped, and `--seeds=3` after `--seeds=1` adds two. `<out>/<suite>.md` is
the report.

Runs may share the machine with other work; `--speeds` then measures, on a quiet one, how fast each method trains.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import tempfile
import time
import tomllib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from absl import flags
from ml_collections import ConfigDict
from suite_report import MEASURES, Blocks, Result, Row, write_report

import mim_jax
from mim_jax.cli import apply_overrides, run_main
from mim_jax.config import override
from mim_jax.errors import ConfigError, TrainingError
from mim_jax.files import replace_text

ROOT = pathlib.Path(__file__).resolve().parents[1]
SUITES = ROOT / "tools" / "suites"
TRAIN_SPLIT = "train[:20000]"  # labelled images of the probes
SPEED_STEPS = 60


def read_suite(name: str) -> tuple[dict[str, Any], list[Row]]:
    """The head and the rows of `tools/suites/<name>.toml`.

    Raises:
      ConfigError: there is no such suite, or it expects something unknown.
    """
    file = SUITES / f"{name}.toml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in SUITES.glob("*.toml")))
        raise ConfigError(f"There is no suite {name!r}; choose one of {known}.")
    suite = tomllib.loads(file.read_text(encoding="utf-8"))
    rows = [_read_row(row) for row in suite.pop("rows")]
    names = [row.name for row in rows]
    for index, row in enumerate(rows):
        for other in row.runs.values():
            if other not in names[:index]:
                raise ConfigError(f"{file.name}: {row.name} learns from {other!r}, which is no row above it.")
        if row.expect not in ("above", "below", "unsaid"):
            raise ConfigError(f"{file.name}: expect of {row.name} is {row.expect!r}; choose above, below or unsaid.")
    return suite, rows


def _read_row(table: dict[str, Any]) -> Row:
    stacks = tuple(Blocks(**stack) for stack in table.pop("stacks", ()))
    return Row(**table, stacks=stacks)


def choose(rows: list[Row], names: list[str], suite: str) -> list[Row]:
    """The rows of these names, or all where none are given; raises ConfigError if the suite lacks one."""
    if unknown := set(names) - {row.name for row in rows}:
        raise ConfigError(f"The suite {suite} has no {', '.join(sorted(unknown))}.")
    return [row for row in rows if not names or row.name in names]


def run_directory(runs: pathlib.Path, row: Row, seed: int, settings: dict[str, int]) -> pathlib.Path:
    """Where one run goes."""
    return runs / f"{row.name}-{settings['steps']}x{settings['batch_size']}-seed{0 if row.once else seed}"


def run_config(
    row: Row, seed: int, settings: dict[str, int], overrides: dict[str, Any], sources: dict[str, pathlib.Path]
) -> ConfigDict:
    """The config of one run; `overrides` are those of the whole suite, by dotted name, `sources` the runs it needs."""
    config = mim_jax.load_config(str(ROOT / "configs" / f"{row.config}.py"))
    steps = settings["steps"]
    if row.once:  # a teacher has the sizes of its own config
        overrides = {key: value for key, value in overrides.items() if key.startswith("evaluation.")}
    changes = {
        **overrides,
        "seed": seed,
        "duration": f"{steps} steps",
        "schedule.warmup": f"{max(1, steps // 10)} steps",
        "batch_size": settings["batch_size"],
        "evaluation.every": None,
        "checkpoint.every": f"{steps} steps",
        "log.tensorboard": False,
        **row.changes,
        **{key: str(path) for key, path in sources.items()},
    }
    for key, value in changes.items():
        override(config, key, value)
    return config


def measure(
    row: Row, seed: int, settings: dict[str, int], config: ConfigDict, runs: pathlib.Path, train_split: str
) -> Result:
    """Trains and evaluates one method from one seed; a run that was interrupted goes on. Accuracies in percent."""
    from mim_jax.evaluate import evaluate
    from mim_jax.train import train

    start = time.monotonic()
    workdir = run_directory(runs, row, seed, settings)
    train(config, workdir)
    split = {"data.train_split": train_split}
    found = {
        "pretrained": evaluate(workdir, (*MEASURES, "statistics"), overrides=split),
        "random_init": evaluate(workdir, MEASURES, random_init=True, overrides=split),
    }
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in logged if "loss" in line]
    metric = {"linear": "top1", "knn": f"top1_k{config.evaluation.knn.k[0]}"}
    return {
        "method": row.name,
        "seed": seed,
        **settings,
        **{f"{name}_{which}": found[which][name].metrics[metric[name]] for name in MEASURES for which in found},
        **{name: found["pretrained"]["statistics"].metrics[name] for name in ("effective_rank", "feature_std")},
        "loss_first": logged[0]["loss"],
        "loss_last": logged[-1]["loss"],
        "skipped": logged[-1]["skipped"],
        # The first line has no rate: it would be that of the compilation.
        "images_per_second": statistics.median(line["images_per_second"] for line in logged[1:]),
        "wall_seconds": time.monotonic() - start,
    }


def measure_speed(config: ConfigDict) -> float:
    """Images a second of a short run of `config`, without what is done once: the median over its logged windows."""
    from mim_jax.train import train

    for key, value in {
        "duration": f"{SPEED_STEPS} steps",
        "schedule.warmup": "1 steps",
        "log.every": "5 steps",
    }.items():
        override(config, key, value)
    with tempfile.TemporaryDirectory() as folder:
        train(config, pathlib.Path(folder))
        lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([line["images_per_second"] for line in lines if "images_per_second" in line][1:])


def earlier_results(file: pathlib.Path, settings: dict[str, int]) -> list[Result]:
    """What earlier calls found; raises ConfigError if they ran for other lengths."""
    results = json.loads(file.read_text()) if file.is_file() else []
    for result in results:
        if any(result[key] != value for key, value in settings.items()):
            raise ConfigError(
                f"{file} holds runs of {result['steps']} steps of {result['batch_size']} images; give the same --steps "
                "and --batch_size, or another --out."
            )
    return results


def define_flags() -> None:
    """Defines the command line's flags."""
    flags.DEFINE_string("suite", None, "A table under tools/suites/.", required=True)
    flags.DEFINE_integer("seeds", 3, "Seeds per method, from 0.", lower_bound=1)
    flags.DEFINE_integer("steps", 500, "Steps per run.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
    flags.DEFINE_list("methods", [], "Only these rows of the suite.")
    flags.DEFINE_bool("speeds", False, "Afterwards measure the speed of every row that has results, one by one.")
    flags.DEFINE_string("out", "docs/reproduction", "Where the report and its numbers go.")
    flags.DEFINE_string("runs", "runs/reproduction", "Where the runs go.")


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Runs what is missing of a suite and writes the report after every run."""
    given = flags.FLAGS
    if config_path:
        raise ConfigError("A suite names its configs itself; leave out --config.")
    suite, rows = read_suite(given.suite)
    chosen = choose(rows, given.methods, given.suite)
    out, settings = pathlib.Path(given.out), {"steps": given.steps, "batch_size": given.batch_size}
    results = earlier_results(out / f"{given.suite}.json", settings)
    wanted = [(row, seed) for seed in range(given.seeds) for row in chosen if not (row.once and seed)]
    done = {(result["method"], result["seed"]) for result in results}
    missing = [(row, seed) for row, seed in wanted if (row.name, seed) not in done]
    command = f"python tools/reproduce.py --suite={given.suite} --seeds={given.seeds} --steps={given.steps}"
    out.mkdir(parents=True, exist_ok=True)
    # Suites have rows of one name and other sizes.
    by_name, runs = {row.name: row for row in rows}, pathlib.Path(given.runs).absolute() / given.suite
    speeds_file = out / f"{given.suite}_speeds.json"
    speeds = json.loads(speeds_file.read_text()) if speeds_file.is_file() else {}

    def config_of(row: Row, seed: int) -> ConfigDict:
        sources = {key: run_directory(runs, by_name[other], seed, settings) for key, other in row.runs.items()}
        if absent := [str(path) for path in sources.values() if not (path / "checkpoints").is_dir()]:
            raise ConfigError(
                f"{row.name} learns from {absent[0]}, which is not there; leave --methods out, or name it."
            )
        return apply_overrides(run_config(row, seed, settings, suite.get("overrides", {}), sources), overrides)

    def write() -> str:
        text = write_report(suite, rows, results, command, speeds)
        replace_text(out / f"{given.suite}.json", json.dumps(results, indent=1) + "\n")
        replace_text(out / f"{given.suite}.md", text)
        return text

    for number, (row, seed) in enumerate(missing, start=1):
        print(f"{row.name}, seed {seed} (run {number} of {len(missing)})", flush=True)
        try:
            results.append(measure(row, seed, settings, config_of(row, seed), runs, TRAIN_SPLIT))
        except TrainingError as error:
            raise TrainingError(f"{row.name}, seed {seed}: {error}") from error
        jax.clear_caches()  # each method compiles its own
        write()
    if given.speeds:
        for row in [row for row in chosen if any(result["method"] == row.name for result in results)]:
            speeds[row.name] = measure_speed(config_of(row, 0))
            print(f"{row.name}: {speeds[row.name]:.0f} images/s", flush=True)
            jax.clear_caches()
            replace_text(speeds_file, json.dumps(speeds, indent=1) + "\n")
            write()
    print(write())  # also where nothing was run: what the suite says of its rows may have changed


if __name__ == "__main__":
    define_flags()
    run_main(main)
