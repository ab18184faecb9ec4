import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.block import BlockStack, drop_path
from mim_jax.layers.compute import Compute


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (4, 5, 8))


def test_scan_loop_and_remat_share_parameters_and_results(x):
    variants = [Compute(scan=s, remat=r) for s in (False, True) for r in ("none", "full", "dots")]
    params = BlockStack(3, 2, 16).init(jax.random.key(1), x)
    outputs, gradients = [], []
    for compute in variants:
        stack = BlockStack(3, 2, 16, compute=compute)
        outputs.append(stack.apply(params, x)[0])
        gradients.append(jax.grad(lambda p, s=stack: jnp.square(s.apply(p, x)[0]).mean())(params))
    for output, gradient in zip(outputs[1:], gradients[1:], strict=True):
        np.testing.assert_allclose(output, outputs[0], rtol=1e-5, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, gradients[0])


def test_returned_layers_end_with_the_output(x):
    stack = BlockStack(3, 2, 16)
    params = stack.init(jax.random.key(1), x)
    output, layers = stack.apply(params, x, return_layers=True)
    assert layers.shape == (3, *x.shape)
    np.testing.assert_array_equal(layers[-1], output)
    first = BlockStack(1, 2, 16).apply(jax.tree.map(lambda p: p[:1], params), x)[0]
    np.testing.assert_allclose(layers[0], first, rtol=1e-5, atol=1e-6)


def test_layers_are_initialised_differently(x):
    kernel = BlockStack(3, 2, 16).init(jax.random.key(1), x)["params"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (3, 8, 16)
    assert not np.allclose(kernel[0], kernel[1])


def test_drop_path_zeroes_whole_samples_and_keeps_the_mean():
    ones = jnp.ones((4000, 3))
    dropped = np.asarray(drop_path(ones, jnp.float32(0.25), jax.random.key(0)))
    assert set(np.unique(dropped).tolist()) <= {0.0, np.float32(1 / 0.75)}
    assert (np.ptp(dropped, axis=1) == 0).all()
    assert abs(dropped.mean() - 1) < 0.05


def test_drop_path_grows_from_zero_over_depth(x):
    stack = BlockStack(2, 2, 16, drop_path=0.999)
    params = stack.init(jax.random.key(1), x)
    rngs = {"drop_path": jax.random.key(5)}
    _, layers = stack.apply(params, x, deterministic=False, return_layers=True, rngs=rngs)
    _, intact = stack.apply(params, x, return_layers=True)
    np.testing.assert_allclose(layers[0], intact[0], rtol=1e-5, atol=1e-6)  # the first block's rate is 0
    np.testing.assert_array_equal(layers[1], layers[0])  # the last one drops (nearly) everything


def test_layer_scale_starts_at_its_value(x):
    params = BlockStack(2, 2, 16, layer_scale=0.1).init(jax.random.key(1), x)["params"]["blocks"]
    np.testing.assert_array_equal(params["gamma1"], np.full((2, 8), np.float32(0.1)))


def test_an_edit_sees_every_blocks_logits_input_and_number(x):
    def edit(scale, logits, inputs, layer):
        return logits * scale, (logits.sum(), inputs, layer)

    for compute in (Compute(scan=False), Compute(scan=True, remat="full", attention="xla")):
        stack = BlockStack(3, 2, 16, compute=compute)
        params = stack.init(jax.random.key(1), x)
        intact, layers = stack.apply(params, x, return_layers=True)
        same = jax.tree_util.Partial(edit, jnp.float32(1.0))
        (output, _), sown = stack.apply(params, x, edit=same, mutable=["intermediates"])
        ((_, inputs, numbers),) = sown["intermediates"]["blocks"]["attention_report"]
        np.testing.assert_allclose(output, intact, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(inputs, jnp.concatenate([x[None], layers[:-1]]), rtol=1e-5, atol=1e-6)
        assert numbers.tolist() == [0, 1, 2]
        flat, _ = stack.apply(params, x, edit=jax.tree_util.Partial(edit, jnp.float32(0.0)))
        assert not np.allclose(flat, intact, atol=1e-3)
