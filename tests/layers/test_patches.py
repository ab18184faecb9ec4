import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.layers.patches import patch_grid, patchify, regroup_patches, unpatchify


@pytest.mark.parametrize(("size", "patch"), [((8, 8), (2, 2)), ((6, 8), (3, 2)), ((4, 12), (4, 4))])
def test_unpatchify_undoes_patchify(size, patch):
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))
    patches = patchify(images, patch)
    np.testing.assert_array_equal(unpatchify(patches, patch, patch_grid(size, patch)), images)


def test_a_patch_vector_is_row_column_channel():
    images = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 4, 3)
    patches = patchify(images, (2, 2))
    np.testing.assert_array_equal(patches[1, 3, :3], images[1, 2, 2])  # R, G, B of the top-left pixel
    np.testing.assert_array_equal(patches[1, 3, 3:6], images[1, 2, 3])
    np.testing.assert_array_equal(patches[1, 3, 6:9], images[1, 3, 2])


def test_patches_are_regrouped_by_where_their_pixels_are():
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    regrouped = regroup_patches(patchify(images, (4, 4)), (4, 4), (2, 3), (2, 1))
    np.testing.assert_array_equal(regrouped, patchify(images, (2, 1)))


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(ConfigError, match="image_size 30x28.*patch_size 4x4"):
        patch_grid((30, 28), 4)
