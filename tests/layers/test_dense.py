import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mim_jax.layers.dense import Dense, DenseGeneral, flat_dot_general
from tests.models.hlo import moved_arrays

X = jax.random.normal(jax.random.key(0), (5, 2, 3, 4, 6))
CASES = {
    "last axis": (Dense, nn.Dense, dict(features=7)),
    "several features": (DenseGeneral, nn.DenseGeneral, dict(features=(3, 7))),
    "two axes": (DenseGeneral, nn.DenseGeneral, dict(features=7, axis=(-2, -1))),
}


def gradients(module):
    return jax.jit(jax.value_and_grad(lambda v, x: jnp.sin(module.apply(v, x)).sum(), argnums=(0, 1)))


@pytest.mark.parametrize("case", CASES)
def test_numbers_and_parameters_are_those_of_flax_and_nothing_is_transposed(case):
    ours, theirs, options = CASES[case]
    variables = ours(**options).init(jax.random.key(1), X)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs(**options).init(jax.random.key(1), X))
    compiled = gradients(ours(**options)).lower(variables, X).compile()
    for one, other in zip(
        *map(jax.tree.leaves, (compiled(variables, X), gradients(theirs(**options))(variables, X))), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert not list(moved_arrays(compiled.as_text()))


def test_on_several_devices_nothing_is_flattened():
    """The axes of a kernel may be sharded."""
    kernel = jnp.ones((6, 3, 7))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def products():
        jaxpr = jax.make_jaxpr(lambda: flat_dot_general(X, kernel, (((4,), (0,)), ((), ()))))()
        return [e.outvars[0].aval.ndim for e in jaxpr.eqns if e.primitive.name == "dot_general"]

    assert products() == [2]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert products() == [6]
