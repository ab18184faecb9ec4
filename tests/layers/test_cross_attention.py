import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.cross_attention import CrossAttention
from mim_jax.layers.rotary import grid_rotation


@pytest.fixture(scope="module")
def inputs():
    return jax.random.normal(jax.random.key(0), (2, 5, 16)), jax.random.normal(jax.random.key(1), (2, 6, 12))


@pytest.fixture(scope="module")
def params(inputs):
    params = CrossAttention(heads=2).init(jax.random.key(2), *inputs)["params"]
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(jax.random.normal(jax.random.key(i), x.shape) / 4 for i, x in enumerate(leaves))


def test_parameters_have_the_shapes_promised(params):
    shapes = {f"{name}/{leaf}": x.shape for name, leaves in params.items() for leaf, x in leaves.items()}
    kernels = {"query/kernel": (16, 2, 8), "key/kernel": (12, 2, 8), "value/kernel": (12, 2, 8)}
    biases = {"query/bias": (2, 8), "key/bias": (2, 8), "value/bias": (2, 8)}
    assert shapes == {**kernels, **biases, "out/kernel": (2, 8, 16), "out/bias": (16,)}


@pytest.mark.parametrize("implementation", ["xla", "einsum"])
def test_it_equals_pytorch(inputs, params, implementation):
    torch = pytest.importorskip("torch")
    x, memory = (torch.tensor(np.asarray(a)) for a in inputs)
    theirs = torch.nn.MultiheadAttention(16, 2, kdim=12, vdim=12, batch_first=True)
    tensors = {name: torch.tensor(np.array(params[name]["kernel"])) for name in params}
    with torch.no_grad():
        for name in "qkv":
            full = {"q": "query", "k": "key", "v": "value"}[name]
            getattr(theirs, f"{name}_proj_weight").copy_(tensors[full].reshape(-1, 16).T)
        biases = [torch.tensor(np.array(params[name]["bias"])).reshape(-1) for name in ("query", "key", "value")]
        theirs.in_proj_bias.copy_(torch.cat(biases))
        theirs.out_proj.weight.copy_(tensors["out"].reshape(16, 16).T)
        theirs.out_proj.bias.copy_(torch.tensor(np.array(params["out"]["bias"])))
        expected, _ = theirs(x, memory, memory)
    actual = CrossAttention(heads=2, implementation=implementation).apply({"params": params}, *inputs)
    np.testing.assert_allclose(actual, expected.numpy(), atol=2e-6)


def test_invalid_memory_is_not_looked_at(inputs, params):
    x, memory = inputs
    valid = jnp.asarray([[True] * 4 + [False] * 2] * 2)

    def apply(memory, valid=None):
        return CrossAttention(heads=2).apply({"params": params}, x, memory, valid=valid)

    np.testing.assert_allclose(apply(memory, valid), apply(memory[:, :4]), atol=1e-6)


def test_rotations_make_attention_depend_on_displacements_alone(inputs, params):
    x, memory = inputs
    layer, ids, memory_ids = (
        CrossAttention(heads=2),
        jnp.asarray([[0, 1, 2, 8, 9]] * 2),
        jnp.asarray([[3, 8, 9, 10, 16, 17]] * 2),
    )

    def apply(shift):
        turns = (grid_rotation((8, 8), 8, i + shift) for i in (ids, memory_ids))
        return layer.apply({"params": params}, x, memory, None, None, *turns)

    np.testing.assert_allclose(apply(8 * 3 + 2), apply(0), atol=2e-6)
    assert np.abs(apply(0) - layer.apply({"params": params}, x, memory)).max() > 1e-3


def test_dropout_is_random_and_off_by_default(inputs, params):
    def apply(rate, key):
        return CrossAttention(heads=2, dropout=rate).apply(
            {"params": params}, *inputs, rngs={"dropout": jax.random.key(key)}
        )

    np.testing.assert_array_equal(apply(0.0, 0), apply(0.0, 1))
    assert np.abs(apply(0.5, 0) - apply(0.5, 1)).max() > 1e-3


def test_values_may_be_made_of_other_tokens_and_keys_have_no_bias(inputs, params):
    x, memory = inputs
    layer = CrossAttention(heads=2, key_bias=False)
    own = {name: dict(leaves) for name, leaves in params.items()}
    del own["key"]["bias"]
    assert jax.tree.structure(layer.init(jax.random.key(0), x, memory)["params"]) == jax.tree.structure(own)
    unbiased = {**params, "key": {**params["key"], "bias": jnp.zeros_like(params["key"]["bias"])}}
    expected = CrossAttention(heads=2).apply({"params": unbiased}, x, memory)
    np.testing.assert_allclose(layer.apply({"params": own}, x, memory, value_memory=memory), expected, atol=1e-6)
    # Of equal values the mean is the value, whatever the keys say.
    values = jnp.broadcast_to(memory[:, :1], memory.shape)
    same = [layer.apply({"params": own}, x, keys, value_memory=values) for keys in (memory, 3.0 * memory)]
    np.testing.assert_allclose(*same, atol=1e-6)
    assert not np.allclose(layer.apply({"params": own}, x, memory, value_memory=3.0 * memory), expected, atol=1e-2)
