"""What a layout is: a list of rules between the names of a public checkpoint and the paths of an objective's variables.

A file `layouts/<owner>__<repo>.py` defines `layout(context) -> Layout`. One list serves both directions. A rule applies
where the objective has its path, so one layout serves pre-training methods and downstream tasks alike.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mim_jax.contract import FrozenTeacher, Objective
from mim_jax.errors import WeightsError
from mim_jax.interop import axes
from mim_jax.layers.patches import as_pair, patch_grid
from mim_jax.layers.position import Resize, sincos_table

# `(table [h * w, D], source grid, target grid)` to a table of the target grid.
Resizer = Callable[[np.ndarray, tuple[int, int], tuple[int, int]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter here, one tensor (or several of equal shape, stacked) there.

    With `{i}` in the names the parameter has a leading layer axis, and layer `i` is one tensor.
    """

    names: tuple[str, ...]  # in the checkpoint
    path: str  # in the variables, like "params/encoder/norm/scale"
    pattern: str = axes.SAME  # see axes.py
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of axes the parameter's shape does not tell
    may_drop: bool = False  # the objective may do without this tensor though it has the part
    grid: tuple[int, int] | None = None  # of position tables `[(1,) prefix + h * w, D]`: the grid to resize to
    resize: Resizer | None = None  # how; None: as PyTorch's plain bicubic does
    # With `{i}`: layer k of the parameter is layer `first + k * every` of the checkpoint.
    first: int = 0
    every: int = 1

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading layer axis."""
        return "{i}" in self.names[0]

    def expected_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each of the rule's tensors for a parameter of shape `ours`; ValueError where the two do not fit."""
        shape = axes.theirs_shape(self.pattern, ours[1:] if self.stacked else ours, self.sizes)
        return shape[1:] if len(self.names) > 1 else shape

    def tensor_names(self, ours: tuple[int, ...]) -> list[str]:
        """Names of all tensors of a parameter of shape `ours`, layer by layer."""
        if not self.stacked:
            return list(self.names)
        layers = range(self.first, self.first + ours[0] * self.every, self.every)
        return [name.format(i=layer) for layer in layers for name in self.names]

    def matches(self, name: str) -> bool:
        """Whether a tensor's name is one of the rule's, of whatever layer."""
        patterns = (re.escape(own).replace(r"\{i\}", r"(?P<layer>\d+)") for own in self.names)
        found = next(filter(None, (re.fullmatch(pattern, name) for pattern in patterns)), None)
        return found is not None and (not self.stacked or (int(found["layer"]) - self.first) % self.every == 0)

    def to_ours(self, tensors: Sequence[np.ndarray], ours: tuple[int, ...]) -> np.ndarray:
        """The parameter of shape `ours` from its tensors, in the order of `tensor_names`."""
        count, layer_shape = len(self.names), ours[1:] if self.stacked else ours
        layers = []
        for start in range(0, len(tensors), count):
            group = tensors[start : start + count]
            array = np.stack(group) if count > 1 else group[0]
            layers.append(axes.to_ours(array, self.pattern, layer_shape, self.sizes))
        return np.stack(layers) if self.stacked else layers[0]

    def to_theirs(self, parameter: np.ndarray) -> list[np.ndarray]:
        """The inverse of `to_ours`."""
        tensors = []
        for layer in parameter if self.stacked else [parameter]:
            array = axes.to_theirs(layer, self.pattern, self.sizes)
            tensors.extend(array if len(self.names) > 1 else [array])
        return tensors


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A tensor that is a constant here, such as a sin-cos table: compared on import, written on export."""

    name: str
    path: str  # where the constant would be, like "params/decoder/position/table"
    value: np.ndarray
    remedy: str  # what to do where the two differ, a clause
    tolerance: float = 1e-5  # absolute
    grid: tuple[int, int] | None = None  # of position tables `[1, prefix + h * w, D]`
    rows_first: bool = False  # see `sincos_table`
    required: bool = False  # whether every checkpoint of this kind has it, so that one without is of another kind


@dataclasses.dataclass(frozen=True)
class Fused:
    """A tensor that holds several of the rules' ones along its first axis, such as torch's `in_proj_weight`."""

    name: str  # in the checkpoint, with `{i}` where there is one a layer
    pieces: tuple[str, ...]  # names for the rules, likewise; all of one shape

    def split(self, name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
        """The pieces of a tensor by name; none if it is another one or its first axis does not divide."""
        found = re.fullmatch(re.escape(self.name).replace(r"\{i\}", r"(\d+)"), name)
        if found is None or not tensor.ndim or len(tensor) % len(self.pieces):
            return {}
        layer = found[1] if found.groups() else None
        names = (piece.format(i=layer) for piece in self.pieces)
        return dict(zip(names, np.split(tensor, len(self.pieces)), strict=True))

    def join(self, tensors: dict[str, np.ndarray]) -> None:
        """Puts the tensor, of every layer, in the place of its pieces."""
        for layer in range(len(tensors)):
            names = [piece.format(i=layer) for piece in self.pieces]
            if names[0] not in tensors:
                return
            tensors[self.name.format(i=layer)] = np.concatenate([tensors.pop(name) for name in names])


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Tensors that have no counterpart here."""

    pattern: str  # regular expression, found anywhere in the name
    reason: str
    quiet: bool = True  # False: worth a warning


@dataclasses.dataclass(frozen=True)
class Layout:
    """One checkpoint format, bound to one objective."""

    rules: tuple[Rule, ...]
    fixed: tuple[Fixed, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    may_miss: tuple[str, ...] = ()  # paths that may stay as initialised though the checkpoint has their part
    containers: tuple[str, ...] = ("model", "state_dict")  # nested mappings of weights; what is beside them is not read
    fused: tuple[Fused, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()  # (regular expression, replacement), in order, before anything is matched
    config: Mapping[str, Any] | None = None  # of `config.json`, for formats that have one
    free_config: tuple[str, ...] = ()  # its keys that may differ without changing what the weights mean
    # What the tensors become before anything is matched, for formats that are more than other names; import only.
    prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """The objective a layout is asked for."""

    config: Any
    shapes: Mapping[str, jax.ShapeDtypeStruct]  # of every leaf of the variables, by path, in tree order
    structure: Any  # the variables' tree structure
    variant: str = ""
    teachers: Mapping[str, FrozenTeacher] = dataclasses.field(default_factory=dict)  # the objective's frozen ones
    encoder_part: str | None = None  # of a teacher's context: what is its encoder

    @property
    def parts(self) -> tuple[str, ...]:
        """Top-level parts of the variables, like "params/encoder"."""
        return tuple(dict.fromkeys(part_of(path) for path in self.shapes))

    @property
    def encoder(self) -> str:
        """The part that holds the encoder: a trained one if there is one, else a frozen one."""
        if self.encoder_part is not None:
            return self.encoder_part
        return "params/encoder" if "params/encoder" in self.parts else "teacher/encoder"

    @property
    def patch_sizes(self) -> dict[str, int]:
        """Axes `h` and `w` of a patch."""
        height, width = as_pair(self.config.model.patch_size)
        return {"h": height, "w": width}

    @property
    def grid(self) -> tuple[int, int]:
        """Patches `(rows, columns)`."""
        return patch_grid(as_pair(self.config.image_size), as_pair(self.config.model.patch_size))

    @property
    def is_task(self) -> bool:
        """Whether the objective is downstream, so that "params/head" is a classifier's."""
        return bool(self.config.task)

    def of_teacher(self, name: str) -> tuple[Context, str]:
        """The context of one of `teachers`, as if its encoder were the objective's, and its part, "teacher/<name>".

        With it the rules of the teacher's own layout serve under a prefix, as in
        `dino_encoder("dino_model.", part, context)`.
        """
        part = f"teacher/{name}"
        return dataclasses.replace(self, config=self.teachers[name].objective.config, encoder_part=part), part

    def is_truncated(self, path: str) -> bool:
        """Whether `path` is in a frozen teacher whose first blocks alone are kept, so that others are no mistake.

        A teacher's `truncated` says so for all of it, or names the parts.
        """
        collection, name, part = (*path.split("/"), "", "")[:3]
        if collection != "teacher" or name not in self.teachers:
            return False
        truncated = self.teachers[name].truncated
        return truncated if isinstance(truncated, bool) else part in truncated

    def require_backbone(self, backbone: str) -> None:
        """Raises WeightsError unless the objective's encoder is of this kind."""
        if self.config.model.backbone != backbone:
            raise WeightsError(
                f"This weights layout is for model.backbone={backbone!r}, not {self.config.model.backbone!r}."
            )

    def mask_token_width(self, part: str) -> int:
        """Channels of a decoder's or predictor's mask tokens, to which its positions are added; 0 where it has none.

        Parts of one name are of many kinds, and so are the sections of the config they are built from.
        """
        names = (f"{part}/mask_token", f"{part}/mask_tokens")
        return next((self.shapes[name].shape[-1] for name in names if name in self.shapes), 0)

    def positions(
        self,
        name: str,
        part: str,
        width: int,
        class_token: bool,
        optional: bool = False,
        resize: Resize | None = None,
    ) -> tuple[list[Rule], list[Fixed]]:
        """A position table `[1, (1 +) h * w, width]`: a rule where it is trained here, else a check of the fixed one.

        `optional` means that the format leaves the table out where there are no positions; otherwise that is all zeros.
        A part without channels has none.
        """
        path = f"{part}/position/table"
        encoder = part.endswith("/encoder") or part == self.encoder
        none = encoder and self.config.model.position in ("none", "rope")
        if path in self.shapes or part_of(part) not in self.parts or not width or (none and optional):
            return [Rule((name,), path, axes.POSITIONS, grid=self.grid, resize=resize)], []
        remedy = "set model.position='learned' to use the source's own" if encoder else "it cannot be changed here"
        if none:
            return [], [Fixed(name, path, np.zeros((1, class_token + math.prod(self.grid), width), np.float32), remedy)]
        rows_first = self.config.model.position == "sincos_rows_first"
        table = np.pad(sincos_table(self.grid, width, rows_first), ((int(class_token), 0), (0, 0)))
        return [], [Fixed(name, path, table[None], remedy, grid=self.grid, rows_first=rows_first)]


def part_of(path: str) -> str:
    """The top-level part of a leaf: collection and first name, like "params/encoder".

    Of averaged statistics also the second one, "state/averaged/encoder".
    """
    names = path.split("/")
    return "/".join(names[: 3 if names[:2] == ["state", "averaged"] else 2])


def flatten(variables: Any) -> dict[str, Any]:
    """Leaves by path, like "params/encoder/norm/scale"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def make_context(objective: Objective, variant: str = "") -> Context:
    """The context of an objective; its variables are only shaped, not computed."""
    shapes = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    return Context(objective.config, flatten(shapes), jax.tree.structure(shapes), variant, objective.teachers)


def layout_names() -> list[str]:
    """Names of all layouts, in lower case, from the files under `layouts/`."""
    package = importlib.import_module("mim_jax.interop.layouts")
    return sorted(module.name.replace("__", "/") for module in pkgutil.iter_modules(package.__path__))


def find_layout(objective: Objective, name: str) -> tuple[str, Context, Layout]:
    """The layout called `"<owner>/<repo>"`, with an optional `":<variant>"`, for an objective.

    A bare `"<owner>"` stands for the layout of that owner that holds the most of the objective.

    Returns:
      The full name, and the context and layout for it.

    Raises:
      WeightsError: there is no such layout or variant.
    """
    base, _, variant = name.lower().replace("-", "_").partition(":")
    known = layout_names()
    context = make_context(objective, variant)
    if "/" not in base:
        candidates = [other for other in known if other.startswith(f"{base}/")]
        base = max(candidates, key=lambda other: _coverage(other, context), default=base)
    if base not in known:
        near = difflib.get_close_matches(base, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise WeightsError(f"There is no weights layout {name!r}{hint}; known: {', '.join(known)}.")
    variants = getattr(_module(base), "VARIANTS", ())
    if variant and variant not in variants:
        raise WeightsError(f"Layout {base!r} has no variant {variant!r}; it has {', '.join(variants) or 'none'}.")
    return f"{base}:{variant}" if variant else base, context, _module(base).layout(context)


def _coverage(name: str, context: Context) -> tuple[int, int]:
    # How many leaves the layout has a name for, and (negated, to break ties) how many of its rules find no leaf.
    try:
        paths = {rule.path for rule in _module(name).layout(context).rules}
    except WeightsError:  # made for another backbone
        return 0, 0
    return len(paths & set(context.shapes)), -len(paths - set(context.shapes))


def rename(name: str, renames: Sequence[tuple[str, str]]) -> str:
    """A tensor's name in the layout's own spelling."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def best_layout(context: Context, names: Sequence[str]) -> str | None:
    """The layout that knows the most of these tensors; None where none knows any."""
    known = {}
    for other in layout_names():
        try:
            layout = _module(other).layout(context)
        except WeightsError:  # made for another backbone
            continue
        renamed = [rename(name, layout.renames) for name in names]
        known[other] = sum(any(rule.matches(name) for rule in layout.rules) for name in renamed)
    best = max(known, key=known.get, default=None)
    return best if best and known[best] else None


def _module(base: str) -> Any:
    return importlib.import_module("mim_jax.interop.layouts." + base.replace("/", "__").replace("-", "_"))
