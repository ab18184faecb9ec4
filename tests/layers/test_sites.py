import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.sites import GatheredSites, MaskedSites, Sites, sites_of

GRID, CELL = (2, 3), 4  # cells, and sites of a cell along either axis
ACTIVE = np.asarray([[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0]], bool).reshape(2, *GRID)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


X = normal(0, 2, GRID[0] * CELL, GRID[1] * CELL, 5)
CONVOLUTIONS = {  # kernel and stride
    "1x1": (normal(1, 1, 1, 5, 6), 1),
    "1x1 stride 2": (normal(1, 1, 1, 5, 6), 2),
    "3x3": (normal(1, 3, 3, 5, 6), 1),
    "3x3 stride 2": (normal(1, 3, 3, 5, 6), 2),
    "7x7 stride 2": (normal(1, 7, 7, 5, 6), 2),
    "2x2 stride 2": (normal(1, 2, 2, 5, 6), 2),
    "depthwise 7x7": (normal(1, 7, 7, 1, 5), 1),
}
LAYERS = {
    name: lambda sites, x, kernel=kernel, stride=stride: sites.convolve(x, kernel, normal(2, kernel.shape[-1]), stride)
    for name, (kernel, stride) in CONVOLUTIONS.items()
}
LAYERS |= {
    "max pooling": lambda sites, x: sites.max_pool(sites.map(jax.nn.relu, x), 3, 2),
    "a function": lambda sites, x: sites.map(jnp.cos, x),  # which makes one of zero
    "a sum": lambda sites, x: sites.add(x, sites.map(jnp.square, x)),
}


def visible(height):
    side = height // GRID[0]
    return np.repeat(np.repeat(ACTIVE, side, axis=1), side, axis=2)


def masked(x):
    return jnp.where(visible(x.shape[1])[..., None], x, 0.0)


def through(sites, layer, x):
    return sites.leave(layer(sites, sites.enter(x)))


RULES = {"masked": sites_of(jnp.asarray(ACTIVE)), "gathered": sites_of(jnp.asarray(ACTIVE), 3)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_see_zeros_where_hidden_and_leave_zeros_there(layer, rule):
    def sum_of_squares(sites, x, finish=lambda y: y):
        y = finish(through(sites, LAYERS[layer], x))
        return jnp.square(y).sum(), y

    run = jax.jit(jax.grad(lambda x: sum_of_squares(RULES[rule], x), has_aux=True))
    expect = jax.jit(jax.grad(lambda x: sum_of_squares(Sites(), masked(x), masked), has_aux=True))
    (gradient, y), (expected_gradient, expected) = run(X), expect(X)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    seen = visible(y.shape[1])
    assert (y[~seen] == 0.0).all() and (y[seen] != 0.0).any(axis=-1).mean() > 0.9


@pytest.mark.parametrize("rule", RULES)
def test_moments_and_pooling_are_over_visible_sites(rule):
    sites = RULES[rule]
    x, seen = sites.enter(X), visible(X.shape[1])
    rows = np.asarray(X, np.float64)[seen]
    mean, variance, count = sites.moments(x)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, rows.var(axis=0), rtol=1e-5)
    assert int(count) == len(rows) == 6 * CELL**2
    expected = np.stack([np.asarray(image)[where].mean(axis=0) for image, where in zip(X, seen, strict=True)])
    np.testing.assert_allclose(sites.pool(x), expected, rtol=1e-5, atol=1e-6)


def test_the_variance_of_numbers_far_from_zero_is_exact():
    x = X + 1000.0
    _, variance, _ = Sites().moments(x)
    np.testing.assert_allclose(variance, np.asarray(x, np.float64).var(axis=(0, 1, 2)), rtol=1e-4)


def test_images_may_hide_different_numbers_of_cells():
    active = jnp.asarray(ACTIVE).at[0, 0, 1].set(True)
    sites = sites_of(active)
    x = sites.enter(X)
    rows = np.asarray(X)[np.repeat(np.repeat(active, CELL, axis=1), CELL, axis=2)]
    mean, _, count = sites.moments(x)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert int(count) == 7 * CELL**2


def test_the_rule_follows_from_what_is_known_of_the_mask():
    active = jnp.asarray(ACTIVE)
    assert type(sites_of(None)) is Sites
    assert type(sites_of(active)) is type(sites_of(active, 3, "dense")) is MaskedSites
    assert type(sites_of(active, 3)) is GatheredSites
