"""Weights out: an objective's variables as a checkpoint of a public layout."""

from __future__ import annotations

import json
import os
import pathlib
import warnings
from collections.abc import Mapping

import jax
import numpy as np

from mim_jax.contract import Objective, Variables
from mim_jax.errors import WeightsError
from mim_jax.files import replace_file, replace_text
from mim_jax.interop.layout import Context, Layout, find_layout, flatten, part_of
from mim_jax.interop.report import WeightsWarning


def export_weights(objective: Objective, variables: Variables, out_dir: str | os.PathLike, layout: str) -> pathlib.Path:
    """Writes `<out_dir>/model.safetensors`, and `config.json` for the layouts of transformers.

    Files that are there already are replaced, each at once: a reader never sees half of one.

    Args:
      objective: the objective the variables belong to.
      variables: its variables; importing the file gives the same again, bit by bit.
      out_dir: made if it is missing.
      layout: as for `import_weights`.

    Returns:
      The path of the safetensors file.

    Raises:
      WeightsError: the layout has no name for some parameter of a part it holds, so that the file would compute
        something else, or for any part at all; or it can only be read. Whole parts it does not hold are left out with a
        warning.
    """
    name, context, bound = find_layout(objective, layout)
    if bound.prepare is not None:
        raise WeightsError(f"Layout {name!r} can only be read: what it stores cannot be told from the weights here.")
    tensors = to_tensors(context, bound, name, variables)
    directory = pathlib.Path(out_dir).expanduser()
    if directory.exists() and not directory.is_dir():
        raise WeightsError(f"{directory} is a file; give a directory to write the weights into.")
    directory.mkdir(parents=True, exist_ok=True)
    if bound.config is not None:
        text = json.dumps(dict(bound.config), indent=2) + "\n"
        replace_text(directory / "config.json", text)
    target = directory / "model.safetensors"
    replace_file(target, lambda path: _save(path, tensors))
    return target


def to_tensors(context: Context, layout: Layout, name: str, variables: Variables) -> dict[str, np.ndarray]:
    """The checkpoint's contiguous tensors by name."""
    leaves = flatten(variables)
    if {path: leaf.shape for path, leaf in leaves.items()} != {path: s.shape for path, s in context.shapes.items()}:
        raise WeightsError("The variables are not those of the given objective: their names or shapes differ.")
    _check_covered(context, layout, name)
    tensors: dict[str, np.ndarray] = {}
    for rule in layout.rules:
        if rule.path not in leaves:
            continue
        parameter = np.asarray(jax.device_get(leaves[rule.path]))
        try:
            arrays = rule.to_theirs(parameter)
        except ValueError as error:
            raise WeightsError(
                f"{rule.path} is of another kind than what layout {name!r} has there: {error}."
            ) from error
        tensors |= dict(zip(rule.tensor_names(parameter.shape), arrays, strict=True))
    for fused in layout.fused:
        fused.join(tensors)
    tensors |= {fixed.name: fixed.value for fixed in layout.fixed if part_of(fixed.path) in context.parts}
    # safetensors writes the memory of a transposed view as it lies there, which is wrong without an error.
    return {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}


def _check_covered(context: Context, layout: Layout, name: str) -> None:
    covered = {rule.path for rule in layout.rules} & set(context.shapes)
    if not covered:
        raise WeightsError(f"Layout {name!r} holds nothing of this objective; it has {', '.join(context.parts)}.")
    parts = {part_of(path) for path in covered}
    rest = [path for path in context.shapes if path not in covered]
    lost = [path for path in rest if part_of(path) in parts and path not in layout.may_miss]
    if lost:
        raise WeightsError(
            f"Layout {name!r} has no name for {', '.join(lost)}: the exported model would compute something else."
        )
    left_out = dict.fromkeys(path if part_of(path) in parts else part_of(path) for path in rest)
    if left_out:
        warnings.warn(
            f"Layout {name!r} does not hold {', '.join(left_out)}: not written.", WeightsWarning, stacklevel=4
        )


def _save(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    # transformers refuses files that do not say for which framework they are laid out. No second entry: safetensors
    # writes several in random order, and equal weights should be equal files.
    save_file(dict(tensors), path, metadata={"format": "pt"})
