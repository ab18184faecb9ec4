"""How far the relations between a student's tokens are from those between a teacher's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.layers.relations import AttentionInputs, attention_logits

# Which of a block's attention inputs are related to which.
RELATIONS = {"query_key": ("query", "key"), "query_query": ("query", "query")}
RELATIONS |= {"key_key": ("key", "key"), "value_value": ("value", "value")}


def relation_logits(inputs: AttentionInputs, name: str) -> jax.Array:
    """Logits `[B, H, N, N]` float32 of one of `RELATIONS`; their softmax over the last axis is the relation."""
    return attention_logits(*(getattr(inputs, which) for which in RELATIONS[name]))


def divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """`KL(teacher || student)` of the softmax of logits `[..., N]`, its mean over all rows; float32 scalar.

    Adding a constant to all logits of a row changes nothing.
    """
    log_teacher = jax.nn.log_softmax(teacher.astype(jnp.float32), axis=-1)
    log_student = jax.nn.log_softmax(student.astype(jnp.float32), axis=-1)
    return (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(axis=-1).mean()
