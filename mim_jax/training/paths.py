"""Parameters by path, such as `encoder/stack/blocks/mlp/fc1/kernel`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mim_jax.errors import ConfigError

# Leaves below this folder are of a transformer's blocks and carry a leading layer axis (mim_jax/layers/block.py).
STACKED = "stack/blocks/"
# So do those of other stacks, such as convolutions.
LAYERED = "/blocks/"


def path_name(path: Sequence[Any]) -> str:
    """The `/`-joined name of a key path as `jax.tree_util` gives it."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def map_with_name(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function receives each leaf's path name first."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def leaf_names(tree: Any) -> list[str]:
    """Path names of all leaves, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def matches(tree: Any, patterns: Sequence[str], key: str) -> Any:
    """A tree of bools: whether any of the regular expressions is found in a leaf's name.

    Raises:
      ConfigError: a pattern of config key `key` matches no parameter, which is a typing mistake.
    """
    names = leaf_names(tree)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"{key} has the pattern {pattern!r}, which matches no parameter; the first is {names[0]!r}."
            )
    return map_with_name(lambda name, _: any(re.search(pattern, name) for pattern in patterns), tree)
