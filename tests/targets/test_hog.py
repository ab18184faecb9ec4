import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.targets.hog import cell_histograms, check_hog, hog_dim, hog_target


def brute_force(pixels, cell, bins):
    """Histograms of one channel `[H, W]`, pixel by pixel and by the angle itself."""
    height, width = pixels.shape
    result = np.zeros((height // cell, width // cell, bins))
    pixels = pixels.astype(np.float64)
    for y in range(height):
        for x in range(width):
            down = pixels[y + 1, x] - pixels[y - 1, x] if 0 < y < height - 1 else 0.0
            right = pixels[y, x + 1] - pixels[y, x - 1] if 0 < x < width - 1 else 0.0
            angle = np.degrees(np.arctan2(down, right)) % 180
            result[y // cell, x // cell, int(angle // (180 / bins))] += np.hypot(down, right) / cell**2
    return result


def test_histograms_are_those_of_the_angles():
    rng = np.random.default_rng(0)
    # Few values give many gradients along the axes, where one bin ends and another begins.
    images = np.concatenate([rng.integers(0, 256, (2, 16, 24, 2)), rng.integers(0, 3, (2, 16, 24, 2))])
    ours = np.asarray(cell_histograms(jnp.asarray(images, jnp.float32), 8, 9))
    assert ours.shape == (4, 2, 3, 9, 2)
    for image, histograms in zip(images, ours, strict=True):
        for channel in range(2):
            expected = brute_force(image[..., channel], 8, 9)
            np.testing.assert_allclose(histograms[..., channel], expected, rtol=1e-5, atol=1e-5)


def ramp(axis, sign=1.0):
    """One image `[1, 16, 16, 1]` whose values grow along an axis."""
    values = sign * 5.0 * jnp.arange(16, dtype=jnp.float32)
    shape = (1, 16, 1, 1) if axis == "rows" else (1, 1, 16, 1)
    return jnp.broadcast_to(values.reshape(shape), (1, 16, 16, 1))


@pytest.mark.parametrize(("axis", "own"), [("columns", 0), ("rows", 4)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_edges_along_the_axes_fall_into_one_bin_whatever_their_sign(axis, own, sign):
    histograms = np.asarray(cell_histograms(ramp(axis, sign), 8, 9))
    assert (histograms[..., own, 0] > 0).all()
    assert (np.delete(histograms, own, axis=3) == 0).all()
    # A gradient of 10 at all positions but those of the border: one of eight in each cell.
    np.testing.assert_allclose(histograms[..., own, 0], 10.0 * 7 / 8)


def test_a_constant_image_gives_zeros():
    np.testing.assert_array_equal(hog_target(jnp.full((2, 16, 16, 3), 255.0), (16, 16)), np.zeros((2, 1, 108)))


def test_every_histogram_has_mean_zero_and_variance_one():
    pixels = jnp.round(255.0 * jax.random.uniform(jax.random.key(0), (2, 32, 32, 3)))
    target = np.asarray(hog_target(pixels, (16, 16))).reshape(2, 4, 4, 9, 3)
    np.testing.assert_allclose(target.mean(axis=3), 0.0, atol=1e-6)
    np.testing.assert_allclose(target.var(axis=3), 1.0, rtol=1e-4)


def test_a_patch_is_ordered_by_cell_row_cell_column_bin_and_channel():
    pixels = jnp.round(255.0 * jax.random.uniform(jax.random.key(1), (1, 32, 48, 3)))
    histograms = np.asarray(cell_histograms(pixels, 8, 9))
    deviation = histograms.std(axis=3, keepdims=True)
    whitened = (histograms - histograms.mean(axis=3, keepdims=True)) / deviation
    target = np.asarray(hog_target(pixels, (16, 16)))
    for patch in range(6):
        row, column = divmod(patch, 3)
        own = whitened[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(target[0, patch].reshape(2, 2, 9, 3), own, atol=1e-4)


def test_the_target_is_float32_and_as_long_as_it_says():
    target = hog_target(jnp.ones((1, 8, 24, 2), jnp.bfloat16), (8, 12), cell_size=4, orientations=5)
    assert target.dtype == jnp.float32
    assert target.shape == (1, 2, hog_dim((8, 12), 4, 5, 2))


@pytest.mark.parametrize(("cell", "bins", "match"), [(3, 9, "cell_size 3"), (0, 9, "cell_size 0"), (8, 1, "orient")])
def test_cells_that_do_not_tile_a_patch_are_refused(cell, bins, match):
    with pytest.raises(ConfigError, match=match):
        check_hog((16, 16), cell, bins)
