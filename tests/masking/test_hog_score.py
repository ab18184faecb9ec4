"""The HOG score against the official computation, written here in PyTorch from the method sheet."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_jax.masking.hog_score import gaussian_window, patch_scores


@pytest.fixture
def images():
    return torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))


def as_ours(images):
    return jnp.asarray(images.permute(0, 2, 3, 1).numpy())


def official_histograms(images):
    """Histograms of 8x8 cells, regrouped by 16x16 patches, before any normalisation: `[B, N, 4, 3, 9]`."""
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    gx = F.conv2d(padded, sobel.expand(3, 1, 3, 3), groups=3)
    gy = F.conv2d(padded, sobel.t().expand(3, 1, 3, 3), groups=3)
    offset = (torch.arange(16) - 7.5) / 8
    window = torch.exp(-0.5 * offset**2)
    window = window[:, None] * window[None, :]
    batch, _, height, width = images.shape
    magnitude = (gx**2 + gy**2).sqrt() * (window / window.sum()).repeat(height // 16, width // 16)
    bins = (torch.atan2(gx, gy) / math.pi * 9).floor().long() % 9
    histogram = torch.zeros(batch, 3, 9, height, width).scatter_(2, bins[:, :, None], magnitude[:, :, None])
    cells = histogram.unfold(3, 8, 8).unfold(4, 8, 8).sum((-1, -2))  # B, 3, 9, 2 rows, 2 columns
    patches = cells.view(batch, 3, 9, height // 16, 2, width // 16, 2).permute(0, 3, 5, 4, 6, 1, 2)
    return patches.reshape(batch, -1, 4, 3, 9)


def test_the_released_score_is_uniform_for_any_image(images):
    descriptor = F.normalize(official_histograms(images), dim=-1).flatten(2)
    variance, mean = torch.var_mean(descriptor, dim=-1, keepdim=True)
    logits = ((descriptor - mean) / (variance + 1e-6).sqrt()).mean(-1)
    released = logits.softmax(-1)
    ours = jax.nn.softmax(patch_scores(as_ours(images), (16, 16), "uniform"))
    assert ours.shape == (2, 6)
    assert np.abs(np.asarray(ours) - 1 / 6).max() < 1e-6
    assert np.abs(np.asarray(ours) - released.numpy()).max() < 1e-6


def test_the_guess_is_the_mean_of_the_histograms_before_they_are_normalised(images):
    expected = official_histograms(images).flatten(2).mean(-1)
    np.testing.assert_allclose(patch_scores(as_ours(images), (16, 16), "hog"), expected.numpy(), rtol=1e-5)


def test_flat_patches_score_nothing_and_edges_score_high():
    image = np.zeros((1, 16, 16, 1), np.float32)
    image[0, 9:11, 9:11] = 1.0
    scores = np.asarray(patch_scores(jnp.asarray(image), (4, 4), "hog")).reshape(4, 4)
    assert scores[2, 2] == scores.max() > 0.0
    assert not scores[:2, :2].any()


def test_the_window_has_sum_one_and_its_peak_in_the_middle():
    window = gaussian_window((16, 8))
    assert window.shape == (16, 8)
    assert window.sum() == pytest.approx(1.0, rel=1e-6)
    assert window[7:9, 3:5].min() == window.max()
    # One standard deviation, half the side, from the middle.
    assert window[0, 3] / window[7, 3] == pytest.approx(math.exp(-0.5 * (7.5**2 - 0.5**2) / 8**2), rel=1e-5)
