"""Applying parts of a method whose networks may keep BatchNorm statistics beside their parameters.

In the contract's variables the statistics of part `name` are `variables["state"][name]`, in Flax's terms the collection
"batch_stats". Parts without BatchNorm have none, and one code serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from mim_jax.contract import Variables

COLLECTION = "batch_stats"


def variables_of(variables: Variables, part: str, collection: str = "params") -> dict[str, Any]:
    """What Flax's `apply` takes for one part: its parameters from `collection`, and its statistics where it has any."""
    statistics = variables.get("state", {}).get(part)
    found = {"params": variables[collection][part]}
    return found if statistics is None else {**found, COLLECTION: statistics}


def collect(parts: Mapping[str, Mapping[str, Any]]) -> Variables:
    """The contract's `params`, and `state` if any part keeps statistics, from what Flax's `init` gave for each part."""
    variables = {"params": {name: part["params"] for name, part in parts.items()}}
    statistics = {name: part[COLLECTION] for name, part in parts.items() if COLLECTION in part}
    return {**variables, "state": statistics} if statistics else variables


def apply(
    module: nn.Module,
    variables: Variables,
    part: str,
    *args: Any,
    collection: str = "params",
    train: bool = False,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Applies `module`, which is part `part` of the variables.

    Args:
      module: the network.
      variables: the contract's variables.
      part: its name in them.
      *args: what the network reads.
      collection: where its parameters are, "params" or "teacher".
      train: whether BatchNorm normalises by the batch's own statistics, which then move the running ones.
      **options: further arguments of `module.apply`.

    Returns:
      The output, and `{part: new statistics}`: empty where nothing keeps statistics or `train` is false.
    """
    given = variables_of(variables, part, collection)
    if not train or COLLECTION not in given:
        return module.apply(given, *args, **options), {}
    output, changed = module.apply(given, *args, train=True, mutable=[COLLECTION], **options)
    return output, {part: changed[COLLECTION]}
