"""Matching the tensors of a source with an objective's leaves by a layout's rules; every mismatch is collected."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from mim_jax.interop.layout import Context, Fixed, Layout, Rule, part_of, rename
from mim_jax.interop.report import Report
from mim_jax.interop.source import Source, select_weights
from mim_jax.layers.patches import as_pair
from mim_jax.layers.position import Resize, sincos_table

MISSING = "missing from the source"
NOT_FINITE = "not finite (NaN or infinity; pass allow_nonfinite=True to load them all the same)"


class Matching:
    """One import under way. After `read`:

    - `values`: arrays by path;
    - `partial`: paths of which the source has something, be it all right or not;
    - `missing`: by part, the paths that may be initialised or copied;
    - `problems`: what is wrong, and the tensors it is wrong with.
    """

    def __init__(
        self,
        context: Context,
        layout: Layout,
        wanted: Iterable[str],
        report: Report,
        *,
        resize_positions: bool,
        allow_nonfinite: bool,
    ):
        self.context, self.layout, self.report = context, layout, report
        self.wanted = set(wanted)
        self.shapes = {path: leaf for path, leaf in context.shapes.items() if part_of(path) in self.wanted}
        self.resize_positions, self.allow_nonfinite = resize_positions, allow_nonfinite
        self.tensors: dict[str, np.ndarray] = {}  # by the layout's spelling
        self.originals: dict[str, str] = {}  # the source's spelling of each
        self.consumed: set[str] = set()
        self.partial: set[str] = set()
        self.values: dict[str, np.ndarray] = {}
        self.missing: dict[str, list[str]] = {}
        self.problems: dict[str, list[str]] = {}

    def read(self, source: Source) -> None:
        """Goes through all tensors and all leaves once."""
        self._rename(source)
        self._check_config(source.config)
        for rule in self.layout.rules:
            if rule.path in self.shapes:
                self._load(rule)
            else:
                self._set_aside(rule)
        for fixed in self.layout.fixed:
            self._compare(fixed)
        self._account_for_the_rest()
        self._find_gaps()
        for path, value in self.values.items():
            arrays, numbers = self.report.loaded.get(part_of(path), (0, 0))
            self.report.loaded[part_of(path)] = (arrays + 1, numbers + value.size)

    def _problem(self, what: str, names: Iterable[str]) -> None:
        self.problems.setdefault(what, []).extend(self.originals.get(name, name) for name in names)

    def _rename(self, source: Source) -> None:
        tensors, others = select_weights(source.tree, self.layout.containers)
        self.report.ignored += others
        for original, tensor in tensors.items():
            name = rename(original, self.layout.renames)
            pieces = next(filter(None, (fused.split(name, tensor) for fused in self.layout.fused)), {name: tensor})
            for name, piece in pieces.items():
                if name in self.tensors:
                    self._problem(f"two tensors that layout {self.report.layout!r} calls {name!r}", [original])
                self.tensors[name], self.originals[name] = piece, original
        if self.layout.prepare is not None:
            self.tensors = dict(self.layout.prepare(self.tensors))

    def _check_config(self, config: Any) -> None:
        if config is not None:  # CLIP's has a section for each of its halves
            config = {**config, **config.get("vision_config", {})}
        for key, ours in (self.layout.config or {}).items():
            if config is None or key not in config:
                continue
            theirs = config[key]
            if _comparable(key, theirs) == _comparable(key, ours):
                continue
            text = f"config.json says {key}={theirs!r}, this objective has {ours!r}"
            if key in self.layout.free_config:
                self.report.notes.append(text)
            else:
                self.problems.setdefault("another architecture", []).append(text)

    def _load(self, rule: Rule) -> None:
        leaf = self.shapes[rule.path]
        names = rule.tensor_names(leaf.shape)
        present = [name for name in names if name in self.tensors]
        if not present:
            return
        self.consumed.update(present)
        self.partial.add(rule.path)
        if absent := [name for name in names if name not in self.tensors]:
            self._problem(MISSING, absent)
        try:
            expected = rule.expected_shape(leaf.shape)
        except ValueError as error:
            self._problem(f"no place in {rule.path} of shape {leaf.shape}, which is of another kind ({error})", present)
            return
        tensors = [self._fit(rule, name, expected, leaf.dtype) for name in present]
        if not absent and all(tensor is not None for tensor in tensors):
            self.values[rule.path] = rule.to_ours(tensors, leaf.shape)

    def _fit(self, rule: Rule, name: str, expected: tuple[int, ...], dtype: Any) -> np.ndarray | None:
        """The tensor of that name, of the expected shape and dtype, or None where something is wrong with it."""
        tensor = self.tensors[name]
        problem = None
        if _kind(tensor.dtype) != _kind(dtype):
            problem = f"{tensor.dtype} where {dtype} is expected"
        elif (grid := _other_grid(tensor.shape, expected, rule.grid)) and self.resize_positions:
            tensor = _resize(tensor, grid, rule)
            self.report.resized.append(f"{self.originals[name]} from {_by(grid)} to {_by(rule.grid)}")
        elif grid:
            problem = _grid_problem(grid, rule.grid)
        elif tensor.shape != expected:
            problem = f"shape {tensor.shape} where {expected} is expected"
        if problem is None:
            # A float64 number may be too large for float32, which is as bad as an infinity.
            with np.errstate(over="ignore"):
                tensor = np.asarray(tensor, dtype)
            if np.isfinite(tensor).all():
                return tensor
            if self.allow_nonfinite:
                self.report.nonfinite.append(self.originals[name])
                return tensor
            problem = NOT_FINITE
        self._problem(problem, [name])
        return None

    def _compare(self, fixed: Fixed) -> None:
        if fixed.name not in self.tensors:
            if fixed.required and part_of(fixed.path) in self.wanted:
                self._problem(f"missing in the source; {fixed.remedy}", [fixed.name])
            return
        self.consumed.add(fixed.name)
        if part_of(fixed.path) not in self.wanted:
            self.report.ignored.append(self.originals[fixed.name])
            return
        tensor, value = self.tensors[fixed.name], fixed.value
        problem = None
        if _kind(tensor.dtype) != _kind(value.dtype):
            problem = f"{tensor.dtype} where {value.dtype} is expected"
            tensor = value
        elif grid := _other_grid(tensor.shape, value.shape, fixed.grid):
            prefix = value.shape[1] - math.prod(fixed.grid)
            value = np.pad(sincos_table(grid, value.shape[2], fixed.rows_first), ((prefix, 0), (0, 0)))[None]
            if self.resize_positions:
                self.report.resized.append(
                    f"{self.originals[fixed.name]} from {_by(grid)} to {_by(fixed.grid)}: a fixed table, computed anew"
                )
            else:
                problem = _grid_problem(grid, fixed.grid)
        if tensor.shape != value.shape:
            problem = f"shape {tensor.shape} where {value.shape} is expected; {fixed.remedy}"
        elif not _distance(tensor, value) <= fixed.tolerance:
            problem = f"differs by {_distance(tensor, value):.3g} from the constant it is here; {fixed.remedy}"
        if problem:
            self._problem(problem, [fixed.name])

    def _set_aside(self, rule: Rule) -> None:
        """Tensors of a rule whose leaf this objective has not, or that nobody asked for."""
        names = [name for name in self.tensors if name not in self.consumed and rule.matches(name)]
        part = part_of(rule.path)
        if not names:
            return
        if part in self.context.parts and part not in self.wanted:
            self.report.ignored += [self.originals[name] for name in names]
        elif part not in self.context.parts:
            self._unused(f"this objective has no {part.split('/')[-1]}", names)
        elif rule.may_drop and self.context.is_truncated(rule.path):
            self.report.ignored += [self.originals[name] for name in names]
        elif rule.may_drop:
            self._unused("this objective does without", names)
        else:
            return  # left over
        self.consumed.update(names)

    def _unused(self, why: str, names: Iterable[str]) -> None:
        self.report.unused.setdefault(why, []).extend(self.originals[name] for name in names)

    def _account_for_the_rest(self) -> None:
        for name in self.tensors:
            if name in self.consumed:
                continue
            reason = next((i for i in self.layout.ignored if re.search(i.pattern, name)), None)
            stacked = next((rule for rule in self._applicable() if rule.stacked and rule.matches(name)), None)
            if reason is not None and reason.quiet:
                self.report.ignored.append(self.originals[name])
            elif reason is not None:
                self._unused(reason.reason, [name])
            elif stacked is not None and self.context.is_truncated(stacked.path):
                self.report.ignored.append(self.originals[name])
            elif stacked is not None:
                self._problem("left over in the source, which is deeper than this model (see model.depth)", [name])
            else:
                self._problem("left over in the source", [name])

    def _find_gaps(self) -> None:
        loaded = {part_of(path) for path in (*self.values, *self.partial)}
        names = {rule.path: rule.tensor_names(self.shapes[rule.path].shape) for rule in self._applicable()}
        for path in self.context.shapes:
            part = part_of(path)
            if path in self.values or path in self.partial:
                continue
            if part in self.wanted and part in loaded and path not in self.layout.may_miss:
                if path in names:
                    self._problem(MISSING, names[path])
                else:
                    self._problem("parameters for which the layout has no tensor", [path])
            else:
                self.missing.setdefault(part, []).append(path)

    def _applicable(self) -> list[Rule]:
        return [rule for rule in self.layout.rules if rule.path in self.shapes]


def _kind(dtype: Any) -> str:
    kinds = {"float": jnp.floating, "integer": jnp.integer, "bool": jnp.bool_}
    return next((name for name, kind in kinds.items() if jnp.issubdtype(dtype, kind)), str(dtype))


def _distance(tensor: np.ndarray, value: np.ndarray) -> float:
    return float(np.abs(np.asarray(tensor, np.float64) - np.asarray(value, np.float64)).max())


def _other_grid(shape: tuple, expected: tuple, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """The square grid a position table `[(1,) prefix + n, D]` has instead of `grid`; None where it is not that."""
    if grid is None or shape == expected or len(shape) < 2:
        return None
    if (*shape[:-2], shape[-1]) != (*expected[:-2], expected[-1]):
        return None
    patches = shape[-2] - (expected[-2] - math.prod(grid))
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side * side == patches else None


def _resize(tensor: np.ndarray, source: tuple[int, int], rule: Rule) -> np.ndarray:
    prefix = tensor.shape[-2] - math.prod(source)
    table = np.asarray(tensor.reshape(tensor.shape[-2:]), np.float32)
    patches = (rule.resize or Resize())(table[prefix:], source, rule.grid)
    return np.concatenate([table[:prefix], patches]).reshape(*tensor.shape[:-2], -1, tensor.shape[-1])


def _grid_problem(source: tuple[int, int], target: tuple[int, int]) -> str:
    return (
        f"position table of a {_by(source)} grid where the model has {_by(target)}; pass resize_positions=True to "
        "resize it, or set image_size and model.patch_size to the source's"
    )


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def _comparable(key: str, value: Any) -> Any:
    return as_pair(tuple(value) if isinstance(value, list) else value) if key == "patch_size" else value
