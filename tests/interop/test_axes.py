"""Every pattern against the index arithmetic of the sheets, and its inverse."""

import numpy as np
import pytest

from mim_jax.interop import axes

RNG = np.random.default_rng(0)


def test_patch_convolution_is_a_dense_layer_on_channel_fastest_patches():
    kernel = RNG.normal(size=(5, 3, 2, 4))  # O, C, H, W
    dense = axes.to_ours(kernel, axes.PATCH_CONVOLUTION, (24, 5), {"h": 2, "w": 4})
    for row in range(2):
        for column in range(4):
            for channel in range(3):
                np.testing.assert_array_equal(dense[(row * 4 + column) * 3 + channel], kernel[:, channel, row, column])


def test_fused_qkv_rows_are_q_k_v_then_heads_then_channels():
    weight = RNG.normal(size=(3 * 2 * 4, 7))
    kernel = axes.to_ours(weight, axes.FUSED_QKV, (7, 3, 2, 4), {})
    for which in range(3):
        for head in range(2):
            for channel in range(4):
                np.testing.assert_array_equal(kernel[:, which, head, channel], weight[which * 8 + head * 4 + channel])


def test_pixel_shuffle_channels_are_colour_major_there_and_colour_fastest_here():
    weight = RNG.normal(size=(3 * 2 * 2, 7, 1, 1))
    kernel = axes.to_ours(weight, axes.PIXEL_SHUFFLE, (7, 12), {"h": 2, "w": 2})
    for colour in range(3):
        for dy in range(2):
            for dx in range(2):
                expected = weight[colour * 4 + dy * 2 + dx, :, 0, 0]
                np.testing.assert_array_equal(kernel[:, (dy * 2 + dx) * 3 + colour], expected)


CASES = [
    (axes.SAME, (5,), {}, (5,)),
    (axes.LINEAR, (3, 5), {}, (5, 3)),
    (axes.TOKEN, (5,), {}, (1, 1, 5)),
    (axes.PATCH_CONVOLUTION, (12, 5), {"h": 2, "w": 2}, (5, 3, 2, 2)),
    (axes.HEAD_BIAS, (2, 4), {}, (8,)),
    (axes.FUSED_QKV, (8, 3, 2, 4), {}, (24, 8)),
    (axes.FUSED_QKV_BIAS, (3, 2, 4), {}, (24,)),
    (axes.SPLIT_QKV, (8, 3, 2, 4), {}, (3, 8, 8)),
    (axes.SPLIT_QKV_BIAS, (3, 2, 4), {}, (3, 8)),
    (axes.ATTENTION_OUT, (2, 4, 6), {}, (6, 8)),
    (axes.PIXEL_SHUFFLE, (7, 12), {"h": 2, "w": 2}, (12, 7, 1, 1)),
    (axes.PIXEL_SHUFFLE_BIAS, (12,), {"h": 2, "w": 2}, (12,)),
    (axes.POSITIONS, (17, 4), {}, (1, 17, 4)),
]


@pytest.mark.parametrize(("pattern", "ours", "sizes", "theirs"), CASES, ids=[case[0] or "same" for case in CASES])
def test_patterns_are_inverted_exactly(pattern, ours, sizes, theirs):
    assert axes.theirs_shape(pattern, ours, sizes) == theirs
    parameter = RNG.normal(size=ours)
    tensor = axes.to_theirs(parameter, pattern, sizes)
    assert tensor.shape == theirs
    np.testing.assert_array_equal(axes.to_ours(tensor, pattern, ours, sizes), parameter)


def test_attention_out_reads_heads_then_channels():
    weight = RNG.normal(size=(6, 8))
    kernel = axes.to_ours(weight, axes.ATTENTION_OUT, (2, 4, 6), {})
    np.testing.assert_array_equal(kernel[1, 2], weight[:, 1 * 4 + 2])


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes"),
    [
        (axes.LINEAR, (3,), {}),  # too few axes
        (axes.PATCH_CONVOLUTION, (13, 5), {"h": 2, "w": 2}),  # 13 does not divide
        (axes.PATCH_CONVOLUTION, (12, 5), {}),  # how 12 splits is not known
    ],
)
def test_a_shape_that_does_not_fit_is_refused(pattern, shape, sizes):
    with pytest.raises(ValueError, match=r"axes|split"):
        axes.theirs_shape(pattern, shape, sizes)
