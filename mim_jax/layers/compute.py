"""How a model is executed, apart from what it computes: dtype, attention kernel, scanning and rematerialisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.attention import IMPLEMENTATIONS

_DTYPES = ("auto", "float32", "bfloat16")
_REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """Execution choices shared by every module of a model; none of them changes the parameter tree.

    "auto" and None stand for what is fastest where the program runs: on CPUs float32 (they have no fast bfloat16),
    einsum attention and scanned blocks; on accelerators bfloat16, XLA's attention and unrolled blocks.
    """

    dtype: str = "auto"  # of activations and matrix products; parameters, norms and softmax stay float32
    attention: str = "auto"  # see mim_jax/layers/attention.py
    scan: bool | None = None  # one compiled block looped over depth: shorter compilation, same numbers
    remat: str = "none"  # what the backward pass recomputes: "none", "full", or all but the "dots"

    @classmethod
    def from_config(cls, config: ConfigDict) -> Compute:
        """From `config.compute`; raises ConfigError for an unknown choice."""
        kernels = ("auto", *IMPLEMENTATIONS)
        for key, choices in (("dtype", _DTYPES), ("attention", kernels), ("remat", _REMAT_POLICIES)):
            if config[key] not in choices:
                raise ConfigError(f"compute.{key} is {config[key]!r}; choose one of {', '.join(choices)}.")
        return cls(compute_dtype(config.dtype), config.attention, config.scan, config.remat)

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The `compute` section with its defaults."""
        return ConfigDict({**dataclasses.asdict(cls()), "scan": optional(bool)})

    @property
    def jax_dtype(self) -> Any:
        """`dtype` as a NumPy dtype."""
        return jnp.dtype(compute_dtype(self.dtype))

    @property
    def attention_kernel(self) -> str:
        """The `implementation` of `dot_product_attention`."""
        if self.attention != "auto":
            return self.attention
        return "einsum" if jax.default_backend() == "cpu" else "xla"

    @property
    def scans(self) -> bool:
        """Whether blocks are scanned: on CPUs unrolled ones save 5 % of a ViT-B's step, and compile twice as long."""
        return jax.default_backend() == "cpu" if self.scan is None else self.scan

    @property
    def materializes(self) -> bool:
        """Whether each block's output is kept from being fused into all later blocks (`layers.materialize`)."""
        return jax.default_backend() == "cpu" and not self.scans

    @property
    def remat_policy(self) -> Callable[..., Any] | None:
        """The `jax.checkpoint` policy; None when nothing is recomputed."""
        return _REMAT_POLICIES[self.remat]


def compute_dtype(name: str) -> str:
    """The dtype that `compute.dtype` stands for on this machine: "float32" or "bfloat16"."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
