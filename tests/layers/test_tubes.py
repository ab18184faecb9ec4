import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.layers.patches import patchify
from mim_jax.layers.tubes import as_clips, sincos_table_3d, tubify, untubify

TUBE, GRID = (2, 3, 5), (2, 4, 3)


@pytest.fixture
def clips():
    frames, height, width = (t * n for t, n in zip(TUBE, GRID, strict=True))
    return jax.random.normal(jax.random.key(0), (2, frames, height, width, 3), jnp.float32)


def test_tubes_are_what_a_strided_convolution_sees(clips):
    weight = torch.randn(7, 3, *TUBE, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.functional.conv3d(torch.tensor(np.array(clips)).permute(0, 4, 1, 2, 3), weight, stride=TUBE)
    flat = weight.permute(2, 3, 4, 1, 0).reshape(-1, 7).numpy()
    np.testing.assert_allclose(tubify(clips, TUBE) @ flat, theirs.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_untubify_is_the_inverse(clips):
    np.testing.assert_array_equal(untubify(tubify(clips, TUBE), TUBE, GRID), clips)


def test_tubes_of_one_frame_are_patches(clips):
    np.testing.assert_array_equal(tubify(clips[:, :1], (1, *TUBE[1:])), patchify(clips[:, 0], TUBE[1:]))


def test_images_become_clips_that_stand_still(clips):
    still = as_clips(clips[:, 0], 5)
    assert still.shape == (2, 5, *clips.shape[2:])
    assert all((still[:, frame] == clips[:, 0]).all() for frame in range(5))
    assert as_clips(clips, 9) is clips


@pytest.mark.parametrize("width", [16, 24, 384])
def test_positions_are_time_row_and_column_cut_to_the_width(width):
    """Each part is 2 * ceil(width / 6) wide, whatever is left of the last."""
    part = 2 * math.ceil(width / 6)
    table = sincos_table_3d((3, 2, 5), width)
    assert table.shape == (30, width) and table.dtype == np.float32
    for token in (0, 7, 13, 29):
        place = (token // 10, token // 5 % 2, token % 5)
        expected = []
        for coordinate in place:
            angles = [coordinate / 10000 ** (2 * k / part) for k in range(part // 2)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        np.testing.assert_allclose(table[token], expected[:width], atol=1e-6)
