"""Normalized knowledge distillation: what a classifier's probabilities teach beyond its decision."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normalized_distillation(logits: jax.Array, teacher: jax.Array, labels: jax.Array) -> jax.Array:
    """NKD (Yang et al. 2022, arXiv 2208.10139) at temperature 1 with both parts weighted 1, mean over the batch.

    The target class is learned as far as the teacher believes in it, `-w log p`; all other classes, normalised anew
    without it, by their cross entropy with the teacher's.

    Args:
      logits: `[B, classes]` float32, of the student.
      teacher: likewise, a constant.
      labels: target class, int32 `[B]`.
    """
    chosen = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)
    log_student, log_teacher = jax.nn.log_softmax(logits, axis=-1), jax.nn.log_softmax(teacher, axis=-1)
    target = -jnp.where(chosen, jnp.exp(log_teacher) * log_student, 0.0).sum(axis=-1)
    others = jax.nn.softmax(teacher, axis=-1, where=~chosen)
    # The target's own logit stays in the array, at a finite value that a sum of zeros is unmoved by.
    log_others = jax.nn.log_softmax(jnp.where(chosen, jnp.finfo(jnp.float32).min, logits), axis=-1)
    non_target = -jnp.where(chosen, 0.0, others * log_others).sum(axis=-1)
    return (target + non_target).mean()
