import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.methods.simmim import rescale_residual_kernels
from mim_jax.training.paths import leaf_names
from tests.tiny import clock, synthetic_batch

TINY = dict(
    method="simmim",
    image_size=16,
    model=dict(width=16, depth=2, heads=2, patch_size=4, drop_path=0.0),
    mask_patch_size=8,
)


@pytest.fixture(scope="module")
def simmim():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def batch(simmim):
    return synthetic_batch(simmim, 4)


@pytest.fixture(scope="module")
def variables(simmim, batch):
    return jax.jit(lambda: simmim.init(jax.random.key(0), batch))()


@pytest.fixture(scope="module")
def mask(simmim, batch):
    return simmim.masks({}, batch, jax.random.key(5), clock())


@pytest.fixture(scope="module")
def loss(simmim):
    return jax.jit(lambda v, b, m: simmim.loss(v, b, m, jax.random.key(0), clock()))


def hidden_pixels(mask):
    grid = np.asarray(mask.mask).reshape(-1, 4, 4)
    return np.repeat(np.repeat(grid, 4, axis=1), 4, axis=2)[..., None]


def test_parameter_counts_are_the_sheets():
    objective = mim_jax.create(dict(method="simmim"))
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert count == {"encoder": 85_666_128, "head": 590_592}


def test_loss_is_the_absolute_error_of_hidden_pixels(variables, batch, mask, loss):
    value, aux = loss(variables, batch, mask)
    error = np.abs(np.asarray(aux["prediction"] - aux["target"]))[np.asarray(mask.mask)]
    pixels = error.size / 3
    assert float(value) == pytest.approx(error.sum() / (pixels + 1e-5) / 3, rel=1e-5)


def test_prediction_does_not_depend_on_pixels_under_the_mask(variables, batch, mask, loss):
    noise = jax.random.normal(jax.random.key(9), batch["image"].shape)
    other = {"image": jnp.where(hidden_pixels(mask), noise, batch["image"])}
    (first, aux), (second, changed) = loss(variables, batch, mask), loss(variables, other, mask)
    np.testing.assert_array_equal(aux["prediction"], changed["prediction"])
    assert float(first) != float(second)


def test_with_everything_hidden_the_latent_is_the_same_for_every_image(variables, batch, loss):
    all_hidden = TokenMask.from_bool(np.ones((4, 16), bool), 0)
    _, aux = loss(variables, batch, all_hidden)
    np.testing.assert_allclose(aux["latent"], np.broadcast_to(aux["latent"][:1], aux["latent"].shape), atol=1e-6)


def test_the_key_has_no_bias_and_the_blocks_share_one_table(variables):
    names = [name for name in leaf_names(variables["params"]["encoder"])]
    assert [n for n in names if n.endswith("_bias")] == [
        "stack/blocks/attention/query_bias",
        "stack/blocks/attention/value_bias",
    ]
    assert [n for n in names if "relative_bias" in n] == ["relative_bias/table"]
    assert variables["params"]["encoder"]["relative_bias"]["table"].shape == (7 * 7 + 3, 2)


def test_kernels_are_cut_at_one_sigma_and_residual_ones_rescaled(variables):
    blocks = variables["params"]["encoder"]["stack"]["blocks"]
    assert np.abs(blocks["mlp"]["fc1"]["kernel"]).max() <= 0.02
    for kernel in (blocks["attention"]["out"]["kernel"], blocks["mlp"]["fc2"]["kernel"]):
        largest = np.abs(np.asarray(kernel)).reshape(2, -1).max(axis=1)
        np.testing.assert_allclose(largest, 0.02 / np.sqrt([2.0, 4.0]), rtol=0.02)


def test_rescaling_divides_by_the_root_of_twice_the_block():
    ones = {"stack": {"blocks": {"mlp": {"fc2": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}}}}}
    scaled = rescale_residual_kernels(ones)["stack"]["blocks"]["mlp"]["fc2"]
    np.testing.assert_allclose(scaled["kernel"][:, 0, 0], 1 / np.sqrt([2.0, 4.0, 6.0]), rtol=1e-6)
    np.testing.assert_array_equal(scaled["bias"], np.ones((3, 2)))


def test_drop_path_is_active_in_pre_training(batch, mask):
    objective = mim_jax.create({**TINY, "model": {**TINY["model"], "drop_path": 0.5}})
    variables = jax.jit(lambda: objective.init(jax.random.key(0), batch))()
    loss = jax.jit(objective.loss)
    values = {float(loss(variables, batch, mask, jax.random.key(i), clock())[0]) for i in range(3)}
    assert len(values) > 1


@pytest.mark.parametrize("size", [6, 12, 2])
def test_mask_patches_that_do_not_tile_are_refused(size):
    with pytest.raises(ConfigError, match="mask_patch_size"):
        mim_jax.create({**TINY, "mask_patch_size": size})
