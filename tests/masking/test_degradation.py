"""The three degradations against PyTorch's operations on the kernels and noise the official code would draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_jax.errors import ConfigError
from mim_jax.masking.degradation import Downsampling, GaussianBlur, GaussianNoise

SIZE = (24, 32)


@pytest.fixture
def pixels():
    return jax.random.uniform(jax.random.key(0), (3, *SIZE, 3))


def as_torch(images):
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def assert_images_equal(ours, theirs):
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=2e-6)


@pytest.mark.parametrize("factor", [2, 8])
def test_downsampling_is_torchs_bicubic_down_and_up(pixels, factor):
    pixels = jnp.round(pixels)  # black and white, so that the overshoot is cut in both resizes
    small = F.interpolate(as_torch(pixels), size=[s // factor for s in SIZE], mode="bicubic").clamp(0, 1)
    assert_images_equal(Downsampling(SIZE, factor)(pixels), F.interpolate(small, size=SIZE, mode="bicubic").clamp(0, 1))


def test_downsampling_leaves_a_constant_image():
    constant = jnp.full((1, *SIZE, 1), 0.3)
    np.testing.assert_allclose(Downsampling(SIZE, 8)(constant), constant, atol=1e-6)


def official_kernel(size, sigma=5.0, largest=21):
    """The isotropic kernel of mfm.md on integers centred at 0, padded to the largest size."""
    x = np.arange(size) - size // 2
    kernel = np.exp(-0.5 * (x[:, None] ** 2 + x[None, :] ** 2) / sigma**2)
    return np.pad(kernel / kernel.sum(), (largest - size) // 2).astype(np.float32)


def test_blur_is_a_correlation_with_the_official_kernel_and_mirrored_borders(pixels):
    kernels = np.stack([official_kernel(size) for size in (7, 13, 21)])
    padded = F.pad(as_torch(pixels), (10, 10, 10, 10), mode="reflect").permute(1, 0, 2, 3)  # images as channels
    expected = F.conv2d(padded, torch.from_numpy(kernels)[:, None], groups=3).permute(1, 0, 2, 3)
    for given in (kernels.sum(axis=1), kernels):
        assert_images_equal(GaussianBlur(SIZE)(pixels, jnp.asarray(given)), expected)


def test_blur_draws_kernels_of_all_sizes_and_sum_one():
    blur = GaussianBlur(SIZE)
    taps = np.asarray(blur.draw(jax.random.key(1), 400))
    assert taps.shape == (400, 21)
    np.testing.assert_allclose(taps.sum(axis=1), 1.0, rtol=1e-6)
    sizes, counts = np.unique((taps > 0).sum(axis=1), return_counts=True)
    assert sizes.tolist() == [7, 9, 11, 13, 15, 17, 19, 21]
    assert (abs(counts - 50) < 4 * np.sqrt(400 * (1 / 8) * (7 / 8))).all()
    np.testing.assert_allclose(taps[(taps > 0).sum(axis=1) == 7][0], official_kernel(7).sum(axis=1), rtol=1e-6)


def test_noise_has_the_papers_strength_and_is_not_cut(pixels):
    noise = GaussianNoise((64, 64, 3)).draw(jax.random.key(2), 8)
    assert float(noise.std()) == pytest.approx(75 / 255, rel=0.01)
    assert abs(float(noise.mean())) < 4 * 75 / 255 / np.sqrt(noise.size)
    assert not np.allclose(noise[..., 0], noise[..., 1])  # colour noise
    noisy = GaussianNoise((*SIZE, 3))(pixels, noise[:3, :24, :32])
    np.testing.assert_array_equal(noisy, pixels + noise[:3, :24, :32])
    assert noisy.min() < 0.0 and noisy.max() > 1.0


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: Downsampling(SIZE, 5), "super_resolution.factor"),
        (lambda: Downsampling(SIZE, 1), "super_resolution.factor"),
        (lambda: GaussianBlur(SIZE, sizes=(7, 8)), "deblur.kernel_sizes"),
        (lambda: GaussianBlur((8, 8), sizes=(17,)), "deblur.kernel_sizes"),
        (lambda: GaussianBlur(SIZE, sigma=0.0), "deblur.sigma"),
        (lambda: GaussianNoise((8, 8, 3), sigma=-1.0), "denoise.sigma"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, key):
    with pytest.raises(ConfigError, match=key):
        build()
