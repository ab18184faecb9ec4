"""MTO: "Emerging Property of Masked Token for Effective Pre-training", Choi et al., ECCV 2024, arXiv 2404.08330.

An addition to any method that feeds mask tokens to a stack of blocks, without parameters of its own.

What the authors' texts say: masked tokens should be singular among the data at the input and commit to visible tokens
with depth, measured by an entropy; attention of visible tokens is recalibrated so that inconsequential masked tokens
are left out; a sparsity, an entropy and a regularising loss (L_spa, L_e, L_r) constrain masked tokens; about half the
epochs suffice. The formulas were not available and no official code was read: the heterogeneity, the form of the three
losses and of the recalibration, and all numbers are this project's reading, each a field of the `mto` section.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.tree_util import Partial
from ml_collections import ConfigDict

from mim_jax.contract import Clock
from mim_jax.errors import ConfigError
from mim_jax.layers.unit import unit

_NOTHING = float(jnp.finfo(jnp.float32).min)


def default_config() -> ConfigDict:
    """The `mto` section, switched off."""
    return ConfigDict(
        dict(
            enabled=False,
            temperature=0.1,  # of the softmax over cosines in the heterogeneity
            # Share of the hidden tokens that visible ones may attend to: from the first number to the second, linear in
            # l / n for block l of n. (1.0, 1.0) leaves attention as it is.
            rho=(0.0, 1.0),
            spa_weight=0.1,
            e_weight=0.1,
            r_weight=0.1,
            margin=0.0,  # of L_r: cosines up to it are free
            warmup=0.1,  # share of the run over which the three weights rise from 0
        )
    )


@struct.dataclass
class Report:
    """What MTO saw in a forward pass."""

    heterogeneity: jax.Array  # H_l of the input of each block, float32 [depth]
    mass: jax.Array  # attention that a visible token gives to hidden ones in each block, float32 [depth]
    singularity: jax.Array  # L_r, float32 []


class MaskedTokenOptimization:
    """MTO for one module: an encoder with mask tokens, or a decoder that is given the visible tokens alone.

    The module has a `mask_token`, takes an `edit`, and embeds its tokens by a layer called `embedding`. Attention of
    all its blocks is computed by "einsum", beside one more matrix of cosines a block.
    """

    def __init__(self, config: ConfigDict, depth: int, prefix: int, embedding: str, visible_only: bool):
        """Binds the section to a module.

        Args:
          config: the `mto` section.
          depth: blocks of the module.
          prefix: class tokens its sequences start with.
          embedding: its layer whose output, before positions are added, stands beside the mask token.
          visible_only: whether that layer is given the class and visible tokens, not all patches.

        Raises:
          ConfigError: a value is out of range.
        """
        self.config, self.depth, self.prefix = config, depth, prefix
        self.embedding, self.visible_only = embedding, visible_only
        if config.temperature <= 0.0:
            raise ConfigError(f"mto.temperature is {config.temperature}; it must be positive.")
        if len(config.rho) != 2 or not all(0.0 <= share <= 1.0 for share in config.rho):
            raise ConfigError(f"mto.rho is {tuple(config.rho)}; give two shares in [0, 1].")
        if not 0.0 <= config.warmup <= 1.0:
            raise ConfigError(f"mto.warmup is {config.warmup}; it must lie in [0, 1].")

    def apply(
        self, module: nn.Module, params: Any, *args: Any, hidden_tokens: jax.Array, **kwargs: Any
    ) -> tuple[jax.Array, Report | None]:
        """`module.apply` with recalibrated attention, and its report (None when MTO is off).

        `hidden_tokens [B, N]` is true where the sequence, without its class tokens, holds a mask token.
        """
        if not self.config.enabled:
            return module.apply({"params": params}, *args, **kwargs), None
        output, sown = module.apply(
            {"params": params},
            *args,
            **kwargs,
            edit=Partial(self._edit, hidden_tokens),
            capture_intermediates=lambda inner, _: inner.name == self.embedding,
            mutable=["intermediates"],
        )
        sown = sown["intermediates"]
        heterogeneity, mass = sown["stack"]["blocks"]["attention_report"][0]
        embedded = sown[self.embedding]["__call__"][0]
        visible = ~hidden_tokens
        if self.visible_only:
            embedded = embedded[:, self.prefix :]
            visible = jnp.ones(embedded.shape[:2], bool)
        singularity = input_similarity(params["mask_token"], embedded, visible, self.config.margin)
        return output, Report(heterogeneity, mass, singularity)

    def add(
        self, loss: jax.Array, aux: dict[str, Any], report: Report | None, clock: Clock
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The base method's loss and `aux` with MTO's terms `spa`, `e` and `r`; as they are when it is off."""
        if report is None:
            return loss, aux
        layer = jnp.arange(1, self.depth + 1, dtype=jnp.float32)
        deep = jnp.arange(self.depth) >= self.depth // 2
        terms = {
            "spa": ((1.0 - layer / self.depth) * report.mass).mean(),
            "e": jnp.where(deep, report.heterogeneity, 0.0).sum() / (self.depth - self.depth // 2),
            "r": report.singularity,
        }
        weight = 1.0 if self.config.warmup == 0.0 else jnp.minimum(clock.progress / self.config.warmup, 1.0)
        penalty = sum(self.config[f"{name}_weight"] * term for name, term in terms.items())
        metrics = {"heterogeneity_first": report.heterogeneity[0], "heterogeneity_last": report.heterogeneity[-1]}
        added = {"terms": {**aux["terms"], **terms}, "metrics": {**aux.get("metrics", {}), **metrics}}
        return loss + weight * penalty, {**aux, **added}

    def _edit(self, hidden: jax.Array, logits: jax.Array, x: jax.Array, layer: jax.Array):
        """Leaves inconsequential hidden keys out for visible queries (class tokens too); reports H_l and the mass."""
        entropy = row_entropy(x[:, self.prefix :], hidden, self.config.temperature)
        start, end = self.config.rho
        if (start, end) != (1.0, 1.0):
            share = start + (end - start) * (layer + 1).astype(jnp.float32) / self.depth
            excluded = hidden & ~most_committed(jax.lax.stop_gradient(entropy), hidden, share)
            pad = ((0, 0), (self.prefix, 0))
            out = ~jnp.pad(hidden, pad)[:, :, None] & jnp.pad(excluded, pad)[:, None, :]
            logits = jnp.where(out[:, None], _NOTHING, logits)
        return logits, (_mean(entropy, hidden), visible_to_hidden_mass(logits, hidden, self.prefix))


def row_entropy(tokens: jax.Array, hidden: jax.Array, temperature: float) -> jax.Array:
    """How undecided each token is between the visible ones: `[B, N]` float32 in [0, 1].

    The entropy, over the logarithm of their number, of a softmax over the cosines between the token and every visible
    token, divided by `temperature`. The mean over hidden tokens is the heterogeneity H.

    Args:
      tokens: `[B, N, D]`.
      hidden: `[B, N]` bool.
      temperature: of the softmax.
    """
    tokens = unit(tokens)
    cosine = jnp.einsum("bmd,bvd->bmv", tokens, tokens, preferred_element_type=jnp.float32)
    log_share = jax.nn.log_softmax(jnp.where(hidden[:, None], _NOTHING, cosine / temperature), axis=-1)
    log_share = jnp.where(hidden[:, None], 0.0, log_share)  # contributes exp(0) * 0
    entropy = -(jnp.exp(log_share) * log_share).sum(axis=-1)
    visible = (~hidden).sum(axis=-1, keepdims=True).astype(jnp.float32)
    return entropy / jnp.log(jnp.maximum(visible, 2.0))


def most_committed(entropy: jax.Array, hidden: jax.Array, share: jax.Array) -> jax.Array:
    """The `share` (rounded to whole tokens) of the hidden tokens of least `entropy [B, N]`: `[B, N]` bool.

    Among equals the first in raster order are taken.
    """
    order = jnp.argsort(jnp.where(hidden, entropy, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    count = jnp.round(share * hidden.sum(axis=1, keepdims=True).astype(jnp.float32)).astype(jnp.int32)
    return hidden & (rank.astype(jnp.int32) < count)


def visible_to_hidden_mass(logits: jax.Array, hidden: jax.Array, prefix: int) -> jax.Array:
    """Attention that a visible token gives to all hidden ones, mean over visible tokens, heads and images; float32 [].

    Args:
      logits: `[B, H, T, T]` float32, `T = prefix + N`; class tokens are visible.
      hidden: `[B, N]` bool.
      prefix: number of class tokens.
    """
    hidden = jnp.pad(hidden, ((0, 0), (prefix, 0)))
    weights = jax.nn.softmax(logits, axis=-1)
    mass = jnp.where(hidden[:, None, None], weights, 0.0).sum(axis=-1).mean(axis=1)
    return _mean(mass, ~hidden)


def input_similarity(mask_token: jax.Array, embedded: jax.Array, visible: jax.Array, margin: float) -> jax.Array:
    """L_r: the mean over visible patch embeddings of `max(0, |cos(mask token, embedding)| - margin)`, float32 [].

    Before positions are added, and with a gradient for the mask token alone.

    Args:
      mask_token: `[D]`.
      embedded: `[B, N, D]`.
      visible: `[B, N]` bool.
      margin: how similar the two may be at no cost.
    """
    embedded = unit(jax.lax.stop_gradient(embedded))
    cosine = jnp.einsum("bnd,d->bn", embedded, unit(mask_token), preferred_element_type=jnp.float32)
    return _mean(jax.nn.relu(jnp.abs(cosine) - margin), visible)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """The mean of `values [B, N]` over the tokens of the whole batch where `where [B, N]` is true."""
    weight = where.astype(jnp.float32)
    return (values * weight).sum() / weight.sum()
