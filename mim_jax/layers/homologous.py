"""Homologous attention and the homologous contrastive loss (Chen et al. 2023, MixedAE, arXiv 2303.17152).

Tokens of the same image are homologous. Both pieces work on sequences of several images' tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Finite, as elsewhere in attention: a row of -inf would have no softmax.
_NOTHING = float(jnp.finfo(jnp.float32).min)


def keep_top_k(logits: jax.Array, k: int, prefix: int = 0) -> jax.Array:
    """Float32 attention logits `[..., Q, K]` of which each row keeps its `k` largest.

    The first `prefix` keys (class tokens) are not counted and stay. Keys as large as the k-th one stay too; gradients
    pass through what stays.
    """
    patches = logits[..., prefix:]
    return _replace(logits, jnp.where(among_largest(jax.lax.stop_gradient(patches), k), patches, _NOTHING), prefix)


def among_largest(values: jax.Array, k: int) -> jax.Array:
    """Which of float32 `values [..., K]` are at least as large as the k-th largest of their row: bool `[..., K]`.

    Finds the k-th largest bit by bit, from 32 counts. `jax.lax.top_k` sorts, which takes several times as long for a
    quarter of a row, and gathers a batch that is split over devices on each of them.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Unsigned numbers in the order of the floats.
    keys = jnp.where(bits < sign, bits | sign, ~bits)

    def with_next_bit(step: jax.Array, threshold: jax.Array) -> jax.Array:
        candidate = threshold | (sign >> step.astype(jnp.uint32))
        enough = (keys >= candidate).sum(axis=-1, keepdims=True, dtype=jnp.int32) >= k
        return jnp.where(enough, candidate, threshold)

    threshold = jnp.zeros((*keys.shape[:-1], 1), jnp.uint32)
    return keys >= jax.lax.fori_loop(0, 32, with_next_bit, threshold)


def keep_homologous(logits: jax.Array, count: int, prefix: int = 0) -> jax.Array:
    """Attention logits `[..., N, N]` between images of `count` tokens each, restricted to within each image.

    Only the first `prefix` tokens see, and are seen by, all.
    """
    number = jnp.arange(logits.shape[-1] - prefix, dtype=jnp.int32) // count
    same = jnp.pad(number[:, None] == number[None], ((prefix, 0), (0, 0)), constant_values=True)
    patches = jnp.where(jnp.broadcast_to(same, logits[..., prefix:].shape), logits[..., prefix:], _NOTHING)
    return _replace(logits, patches, prefix)


def _replace(logits: jax.Array, patches: jax.Array, prefix: int) -> jax.Array:
    return patches if prefix == 0 else jnp.concatenate([logits[..., :prefix], patches], axis=-1)


def homologous_contrast(tokens: jax.Array, segments: int, temperature: float) -> jax.Array:
    """Patch-level supervised contrast: each token against all others of its sequence, its own image's being positive.

    Args:
      tokens: `[G, segments * n, D]`, `n` tokens of each image in a row; compared by cosine, in float32.
      segments: images in a sequence.
      temperature: divides the cosines.

    Returns:
      The mean over anchors and positives of `-log(exp(s_ap) / sum over others o of exp(s_ao))`, float32 [].
    """
    tokens = tokens.astype(jnp.float32)
    length = jnp.sqrt(jnp.maximum(jnp.square(tokens).sum(axis=-1, keepdims=True), 1e-24))
    tokens = tokens / length
    logits = jnp.einsum("gnd,gmd->gnm", tokens, tokens, preferred_element_type=jnp.float32) / temperature
    count, homologous = tokens.shape[1], tokens.shape[1] // segments
    itself = jnp.eye(count, dtype=bool)
    number = jnp.arange(count, dtype=jnp.int32) // homologous
    positive = (number[:, None] == number[None]) & ~itself
    log_share = jax.nn.log_softmax(jnp.where(itself[None], _NOTHING, logits), axis=-1)
    return -jnp.where(positive[None], log_share, 0.0).sum() / (tokens.shape[0] * count * (homologous - 1))
