"""A barrier for XLA:CPU, whose compiler drops `optimization_barrier` before it fuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def materialize(x: jax.Array) -> jax.Array:
    """`x`, which the compiler writes to memory instead of computing it anew wherever it is read; so is its gradient.

    XLA:CPU fuses the sums of a residual stream into everything that reads it, so that each of many unrolled blocks adds
    up the branches of all blocks before it. What a loop carries it must have in memory, and it cannot know that this
    loop never turns. An array spread over several devices is returned as it is.
    """
    return _carried_by_a_loop(x)


def _carried_by_a_loop(x: jax.Array) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return x  # all devices would have to agree on the number of turns
    turns = (x.reshape(-1)[0] > jnp.inf).astype(jnp.int32)  # none, which the compiler does not conclude
    _, x = jax.lax.while_loop(
        lambda carry: carry[0] < turns,
        # A value that no turn changes would be taken out of the loop.
        lambda carry: (carry[0] + 1, carry[1] + jnp.ones((), x.dtype)),
        (jnp.zeros((), jnp.int32), x),
    )
    return x


materialize.defvjp(lambda x: (_carried_by_a_loop(x), None), lambda _, gradient: (_carried_by_a_loop(gradient),))
