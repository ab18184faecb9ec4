import jax
import numpy as np
import pytest

from mim_jax.layers.depthwise import depthwise_convolution, grouped_convolution, shifted_sum


@pytest.mark.parametrize(("size", "padding"), [(5, 2), (3, 0), (7, 3)])
def test_both_ways_to_convolve_are_the_same_and_so_are_their_gradients(size, padding):
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 4))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 4))

    @jax.jit
    def run(x, kernel):
        results = []
        for convolve in (shifted_sum, grouped_convolution):
            y, transposed = jax.vjp(lambda *inputs, convolve=convolve: convolve(*inputs, padding), x, kernel)
            results.append((y, *transposed(jax.random.normal(jax.random.key(2), y.shape))))
        return results

    one, other = run(x, kernel)
    assert one[0].shape == (2, 5 + 2 * padding - size + 1, 7 + 2 * padding - size + 1, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), one, other)


def test_no_shifted_map_is_kept_for_the_gradient():
    x, kernel = jax.ShapeDtypeStruct((2, 16, 16, 8), "float32"), jax.ShapeDtypeStruct((7, 7, 1, 8), "float32")
    _, transposed = jax.eval_shape(lambda *inputs: jax.vjp(lambda *a: depthwise_convolution(*a, 3), *inputs), x, kernel)
    kept = sum(leaf.size for leaf in jax.tree.leaves(transposed))
    assert kept <= x.size + kernel.size
