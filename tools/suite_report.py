"""The report of `tools/reproduce.py`: what a suite's runs found, in Markdown, beside what the papers claim."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import statistics
import textwrap
from typing import Any

import jax
import scipy.stats

MEASURES = ("linear", "knn")
Result = dict[str, Any]  # of one run, as `reproduce.measure` returns it


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Transformer blocks that a step runs for an image, from whose sizes its cost is predicted."""

    depth: int
    width: int
    tokens: int
    keys: int | None = None  # tokens that self-attention looks at, where not all are
    memory: tuple[int, int] | None = None  # tokens and width of what cross-attention looks at, where there is any
    self_attention: bool = True
    mlp: int | None = None  # hidden units, where not four times the width
    times: float = 1.0  # sequences an image
    trained: bool = True  # a forward and two backward passes; otherwise the forward pass alone

    def flops(self) -> float:
        """Matrix products of all passes for an image, 2 for each multiply-add."""
        n, d = self.tokens, self.width
        work = 4 * n * d * (self.mlp or 4 * d)
        if self.self_attention:
            work += _attention_flops(n, d, self.keys or n, d)
        if self.memory is not None:
            work += _attention_flops(n, d, *self.memory)
        return (3 if self.trained else 1) * self.times * self.depth * work

    def describe(self) -> str:
        """In a few words, such as `2 x 12x768 on 50, forward`."""
        text = f"{self.depth}x{self.width} on {self.tokens}"
        text = text if self.times == 1.0 else f"{self.times:g} x {text}"
        text = text if self.keys is None else f"{text}, {self.keys} keys"
        text = text if self.memory is None else f"{text} and {self.memory[0]}"
        return text if self.trained else f"{text}, forward"


def _attention_flops(queries: int, width: int, keys: int, key_width: int) -> int:
    """Projections of queries and output, of keys and values, and the two products of attention itself."""
    return 4 * queries * width**2 + 4 * keys * key_width * width + 4 * queries * keys * width


@dataclasses.dataclass(frozen=True)
class Row:
    """A method of a suite."""

    name: str
    config: str  # the name of a file under configs/
    claim: str  # the paper's, in a sentence
    expect: str  # what that means for the linear probe: "above" or "below" the baseline's, or "unsaid"
    baseline: str | None = None  # the row to compare with, where it is not the suite's
    runs: dict[str, str] = dataclasses.field(default_factory=dict)  # config key: the row whose run it is set to
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)  # config values of this row alone, by dotted name
    once: bool = False  # trained from one seed, since it is only there for others to learn from
    recipe: str = ""  # the paper's recipe under configs/, of which the cost of a step is measured
    stacks: tuple[Blocks, ...] = ()  # what the recipe's method needs for an image
    elsewhere: float = 0.0  # work for an image that is not in such blocks, in GFLOP, where that is much

    def predicted_flops(self) -> float:
        """Work of a step for an image."""
        return sum(stack.flops() for stack in self.stacks) + 1e9 * self.elsewhere

    def describe_work(self) -> str:
        """All of it in a few words."""
        parts = [stack.describe() for stack in self.stacks]
        return ", ".join([*parts, f"{self.elsewhere:g} GFLOP elsewhere"] if self.elsewhere else parts)


def spread(values: list[float]) -> str:
    """Mean and standard deviation; the deviation only where there is more than one value."""
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


@dataclasses.dataclass(frozen=True)
class SeedNoise:
    """How much a linear probe differs from seed to seed, over all methods of a suite together.

    Two or three seeds say little of one method's deviation, those of all methods together say enough.
    """

    deviation: float
    freedom: int  # runs less methods; 0 where nothing is known

    @classmethod
    def of(cls, groups: list[list[float]]) -> SeedNoise:
        """From the values of every method's seeds."""
        freedom = sum(len(values) - 1 for values in groups if values)
        squares = sum(statistics.variance(values) * (len(values) - 1) for values in groups if len(values) > 1)
        return cls(math.sqrt(squares / freedom) if freedom else math.nan, freedom)

    def margin(self, runs: int, others: int, deviation: float = 0.0) -> float:
        """The difference between means over so many runs that seeds alone exceed in one of twenty cases.

        Where the two methods are known to deviate by more than all do, by `deviation`, that counts.
        """
        quantile = scipy.stats.t.ppf(1.0 - 0.05 / 2.0, self.freedom)
        return quantile * max(deviation, self.deviation) * math.sqrt(1.0 / runs + 1.0 / others)


def verdict(expect: str, values: list[float], baseline: list[float], noise: SeedNoise) -> str:
    """What linear probes say of a claim: "agrees", "does not agree" or "cannot be told".

    A difference of means counts where seeds alone would hardly make it; with one seed nothing can be told.
    """
    if expect == "unsaid" or min(len(values), len(baseline)) < 2:
        return "cannot be told"
    difference = statistics.fmean(values) - statistics.fmean(baseline)
    if abs(difference) <= noise.margin(len(values), len(baseline), SeedNoise.of([values, baseline]).deviation):
        return "cannot be told"
    return "agrees" if (difference > 0) == (expect == "above") else "does not agree"


def write_report(
    suite: dict[str, Any], rows: list[Row], results: list[Result], command: str, speeds: dict[str, float]
) -> str:
    """The whole report; rows without results are left out.

    Args:
      suite: `title`, `baseline` (the name of a row), and where there are any `overrides` of every row's config and
        `remarks` on the table of results.
      rows: the suite's methods.
      results: at least one.
      command: what made them.
      speeds: images a second by row, measured one after another; empty where only the runs' own are known.
    """
    found = Found(results)
    rows = [row for row in rows if found.runs(row.name)]
    minutes = sum(result["wall_seconds"] for result in results) / 60
    worse = [row.name for row in rows if found.gain(row.name) <= 0]
    noise = SeedNoise.of([found.values(row.name, "linear_pretrained") for row in rows])
    skipped = sorted({result["method"] for result in results if result["skipped"]})
    return "\n".join(
        [
            f"# {suite['title']}",
            "",
            f"Fashion-MNIST, tiny encoders, {results[0]['steps']} steps of {results[0]['batch_size']} images a run:",
            "enough to see that a method trains and what its features gain over its own random initialisation, far too",
            "little to rank methods. Top-1 in %, mean ± standard deviation over seeds; the probes learn from 20,000",
            "labelled images.",
            "",
            f"    {command}",
            "",
            *_settings(suite.get("overrides", {})),
            f"{len(results)} runs in {minutes:.0f} minutes on {os.cpu_count()} CPU cores ({platform.machine()}), jax "
            f"{jax.__version__}.",
            "",
            *_results_table(suite["baseline"], rows, found, speeds),
            "",
            *_about_speeds(rows, speeds),
            *_remarks(suite.get("remarks", "")),
            *_chains(rows),
            *_claims_table(suite["baseline"], rows, found, noise),
            "",
            f"Linear probes that do not beat random initialisation: {', '.join(worse) or 'none'}. "
            f"Methods with skipped updates: {', '.join(skipped) or 'none'}.",
            "",
            *_about_verdicts(noise),
        ]
    )


def _about_verdicts(noise: SeedNoise) -> list[str]:
    if not noise.freedom:
        return ["With one seed no claim can be told to agree or not.", ""]
    three, two = noise.margin(3, 3), noise.margin(2, 2)
    text = (
        "A claim agrees, or does not, where linear probes differ by more than seeds alone would make them in one of "
        "twenty cases, so that about one of twenty comes out by chance (Student's t, with the deviation from seed to "
        f"seed of all methods together, {noise.deviation:.2f} with {noise.freedom} degrees of freedom, or "
        f"of the two that are compared, where that is more): by at least {three:.1f} between rows of three seeds, "
        f"{two:.1f} of two. A claim about anything but recognition at equal steps cannot be told here."
    )
    return [*textwrap.wrap(text, 120), ""]


def _about_speeds(rows: list[Row], speeds: dict[str, float]) -> list[str]:
    if all(row.name in speeds for row in rows):
        return []
    return ["Images/s are those of the runs themselves; where these shared the machine, they compare nothing.", ""]


def _remarks(text: str) -> list[str]:
    return [*text.strip().splitlines(), ""] if text else []


def _chains(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        parts = [f"`{key}={value}`" for key, value in row.changes.items()]
        parts += [f"`{key}` is the run of {other}" for key, other in row.runs.items()]
        if parts:
            lines.append(f"- {row.name}: {', '.join(parts)}")
    return [*lines, ""] if lines else []


def _settings(overrides: dict[str, Any]) -> list[str]:
    if not overrides:
        return []
    changes = ", ".join(f"`{key}={value}`" for key, value in overrides.items())
    return [f"Every run is its `configs/*_fashion_mnist.py` with {changes}.", ""]


class Found:
    """Results by method."""

    def __init__(self, results: list[Result]):
        self._results = results

    def runs(self, name: str) -> list[Result]:
        """The runs of one row."""
        return [result for result in self._results if result["method"] == name]

    def values(self, name: str, key: str) -> list[float]:
        """One number of each run of a row."""
        return [result[key] for result in self.runs(name)]

    def mean(self, name: str, key: str) -> float:
        """Its mean; NaN where there is no run."""
        values = self.values(name, key)
        return statistics.fmean(values) if values else math.nan

    def gain(self, name: str) -> float:
        """Linear top-1 over that of the random initialisation."""
        return self.mean(name, "linear_pretrained") - self.mean(name, "linear_random_init")


def _results_table(baseline: str, rows: list[Row], found: Found, speeds: dict[str, float]) -> list[str]:
    # Runs that shared the machine say little of speed, so measured speeds are all or nothing.
    measured = all(row.name in speeds for row in rows)
    rates = {row.name: speeds[row.name] if measured else found.mean(row.name, "images_per_second") for row in rows}
    titles = ["method", "seeds", "linear", "random init", "k-NN", "random init", "loss, first to last", "images/s"]
    titles.append("relative")
    has_statistics = all("effective_rank" in run for row in rows for run in found.runs(row.name))
    if has_statistics:
        titles += ["rank", "std"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [row.name, str(len(found.runs(row.name)))]
        for measure in MEASURES:
            cells += [spread(found.values(row.name, f"{measure}_{which}")) for which in ("pretrained", "random_init")]
        cells.append(" to ".join(f"{found.mean(row.name, key):.3f}" for key in ("loss_first", "loss_last")))
        relative = rates[row.name] / rates[baseline] if baseline in rates else math.nan
        cells += [f"{rates[row.name]:.0f}", f"{relative:.2f}"]
        if has_statistics:
            cells += [f"{found.mean(row.name, 'effective_rank'):.1f}", f"{found.mean(row.name, 'feature_std'):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _claims_table(suite_baseline: str, rows: list[Row], found: Found, noise: SeedNoise) -> list[str]:
    lines = ["| method | the paper's claim | seen here | linear, against | difference |", "|---|---|---|---|---|"]
    for row in rows:
        baseline = row.baseline or suite_baseline
        if row.name == baseline or row.once:
            continue
        values, others = (found.values(name, "linear_pretrained") for name in (row.name, baseline))
        difference = found.mean(row.name, "linear_pretrained") - found.mean(baseline, "linear_pretrained")
        seen = verdict(row.expect, values, others, noise)
        lines.append(f"| {row.name} | {row.claim} | {seen} | {baseline} | {difference:+.1f} |")
    return lines
