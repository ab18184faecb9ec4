"""Weights in: every tensor of the source finds its place and every leaf its value, or the difference is told."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.contract import Objective, Variables
from mim_jax.errors import WeightsError
from mim_jax.interop.layout import Context, best_layout, find_layout, flatten, part_of
from mim_jax.interop.matching import Matching
from mim_jax.interop.report import Report, WeightsWarning, group_names
from mim_jax.interop.source import read_source


def import_weights(
    objective: Objective,
    source: str | os.PathLike | Mapping[str, Any],
    layout: str,
    *,
    rng: jax.Array | None = None,
    parts: Sequence[str] | None = None,
    resize_positions: bool = False,
    allow_nonfinite: bool = False,
    strict: bool = False,
) -> Variables:
    """An objective's variables with the weights of a public checkpoint, numerically equal to the original's.

    Args:
      objective: what to load into; its config says the sizes.
      source: a `.safetensors`, `.npz`, `.pth`, `.pt` or `.bin` file, a directory as transformers writes it, or a
        mapping of names to arrays (torch tensors or numpy; nested mappings as in training checkpoints). Nothing in a
        file is executed.
      layout: `"<owner>/<repo>"` of the code that wrote it, with `":<variant>"` where it has several, or a bare
        `"<owner>"` to let the objective decide; see `mim_jax/interop/layouts/`.
      rng: for parts the source does not have; by default from `config.seed`.
      parts: top-level parts to take, like `("encoder",)`; the others are initialised, and their tensors left alone.
      resize_positions: resize position tables of another grid, as PyTorch's bicubic `interpolate` does.
      allow_nonfinite: load tensors with NaN or infinity inside, say to look at a run that diverged.
      strict: refuse what otherwise is only warned of: a whole part that is missing, tensors that are not used, or
        (where they are allowed) that are not finite.

    Returns:
      All collections of the variables, float32, one buffer for every leaf.

    Raises:
      WeightsError: the file cannot be read; or it does not fit, with every mismatch listed.
    """
    variables, _ = import_with_report(
        objective,
        source,
        layout,
        rng=rng,
        parts=parts,
        resize_positions=resize_positions,
        allow_nonfinite=allow_nonfinite,
        strict=strict,
    )
    return variables


def import_with_report(
    objective: Objective,
    source: str | os.PathLike | Mapping[str, Any],
    layout: str,
    *,
    rng: jax.Array | None = None,
    parts: Sequence[str] | None = None,
    resize_positions: bool = False,
    allow_nonfinite: bool = False,
    strict: bool = False,
) -> tuple[Variables, Report]:
    """`import_weights`, and a `Report` of what was loaded, resized and left random."""
    name, context, bound = find_layout(objective, layout)
    wanted = _wanted_parts(context, parts)
    raw = read_source(source)
    report = Report(raw.origin, name)
    matching = Matching(
        context, bound, wanted, report, resize_positions=resize_positions, allow_nonfinite=allow_nonfinite
    )
    matching.read(raw)
    if not matching.partial:
        raise WeightsError(_nothing_fits(context, matching, report))
    if matching.problems:
        raise WeightsError(_describe(matching.problems, report))
    fresh = _settle_gaps(context, matching, wanted)
    if strict and report.warnings():
        raise WeightsError(f"{report.origin} does not hold all of the objective: {'; '.join(report.warnings())}.")
    for message in report.warnings():
        warnings.warn(f"{report.origin}: {message}.", WeightsWarning, stacklevel=3)
    values = matching.values | _initialise(objective, rng, fresh)
    # Copies: leaves that share a buffer, with each other or with numpy, could not be donated to a training step.
    leaves = [jnp.array(values[path], dtype=shape.dtype, copy=True) for path, shape in context.shapes.items()]
    return jax.tree.unflatten(context.structure, leaves), report


def _wanted_parts(context: Context, parts: Sequence[str] | None) -> set[str]:
    if parts is None:
        return set(context.parts)
    known = {part.split("/")[-1] for part in context.parts}
    if unknown := set(parts) - known:
        raise WeightsError(
            f"There is no part {', '.join(sorted(unknown))} in this objective; it has {', '.join(sorted(known))}."
        )
    return {part for part in context.parts if part.split("/")[-1] in parts}


def _settle_gaps(context: Context, matching: Matching, wanted: set[str]) -> list[str]:
    """Copies what a twin has, enters the rest of the gaps in the report, and returns the paths to initialise."""
    report, values = matching.report, matching.values
    missing = matching.missing
    for part in [part for part in missing if part in wanted]:
        if (twin := _twin(context, part)) and twin not in missing:
            for path in missing.pop(part):
                values[path] = values[twin + path.removeprefix(part)]
            report.copied[part] = twin
    fresh = []
    for part, paths in missing.items():
        fresh += paths
        if part in wanted:
            names = [part] if all(part_of(path) != part for path in values) else paths
            for name in names:
                chosen = [path for path in paths if path == name or part_of(path) == name]
                report.random[name] = sum(math.prod(context.shapes[path].shape) for path in chosen)
    return fresh


def _twin(context: Context, part: str) -> str | None:
    """The part of the same name and shapes in another collection: an EMA teacher and its student start equal."""

    def shapes(of: str) -> dict[str, tuple[int, ...]]:
        return {path.removeprefix(of): leaf.shape for path, leaf in context.shapes.items() if part_of(path) == of}

    for other in context.parts:
        if other != part and other.split("/")[-1] == part.split("/")[-1] and shapes(other) == shapes(part):
            return other
    return None


def _initialise(objective: Objective, rng: jax.Array | None, paths: Sequence[str]) -> dict[str, Any]:
    if not paths:
        return {}

    def chosen(rng: jax.Array) -> dict[str, jax.Array]:
        leaves = flatten(objective.init(rng, objective.batch_spec()))
        return {path: leaves[path] for path in paths}

    # Under jit, so that what is not chosen is never computed.
    return jax.jit(chosen)(jax.random.key(objective.config.seed) if rng is None else rng)


def _describe(problems: Mapping[str, list[str]], report: Report) -> str:
    lines = [f"  {what}: {', '.join(group_names(names))}" for what, names in problems.items()]
    return f"{report.origin} does not fit this objective in layout {report.layout!r}:\n" + "\n".join(lines)


def _nothing_fits(context: Context, matching: Matching, report: Report) -> str:
    names = list(matching.originals.values())
    some = ", ".join(names[:3]) or "no tensors at all"
    message = f"{report.origin} holds nothing that layout {report.layout!r} knows (it has {some})"
    best = best_layout(context, names)
    return f"{message}; it looks like layout {best!r}." if best and best != report.layout else f"{message}."
