import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.errors import ConfigError
from mim_jax.masking.frequency import keep_frequencies
from mim_jax.targets.spectrum import FrequencyLoss

SHAPE = (3, 8, 12, 2)


@pytest.fixture
def pair():
    return tuple(jax.random.normal(jax.random.key(seed), SHAPE) for seed in (0, 1))


@pytest.fixture
def compared():
    return jax.random.bernoulli(jax.random.key(2), 0.3, SHAPE[:3])


def distances(prediction, target, tiles=1, average=False):
    """|F(prediction) - F(target)| of every tile in float64, `[B, tiles^2, C, h, w]`."""

    def spectrum(images):
        images = np.asarray(images, np.float64).transpose(0, 3, 1, 2)
        rows = [part for half in np.split(images, tiles, axis=2) for part in np.split(half, tiles, axis=3)]
        result = np.fft.fft2(np.stack(rows, axis=1), norm="ortho")
        return result.mean(axis=0, keepdims=True) if average else result

    return np.abs(spectrum(prediction) - spectrum(target))


def test_mean_distance_over_the_compared_frequencies_of_the_whole_batch(pair, compared):
    shifted = np.fft.ifftshift(np.asarray(compared), axes=(1, 2))
    every_channel = np.broadcast_to(shifted[:, None], (3, 2, 8, 12))
    expected = distances(*pair)[:, 0][every_channel].mean()
    assert float(FrequencyLoss()(*pair, compared)) == pytest.approx(expected, rel=1e-5)


def test_with_all_frequencies_compared_it_is_the_plain_mean(pair):
    everything = jnp.ones(SHAPE[:3], bool)
    plain = FrequencyLoss()(*pair)
    assert float(plain) == pytest.approx(distances(*pair).mean(), rel=1e-5)
    assert float(FrequencyLoss()(*pair, everything)) == pytest.approx(float(plain), rel=1e-6)


def test_parseval_with_gamma_two(pair):
    error = float(jnp.square(pair[0] - pair[1]).mean())
    assert float(FrequencyLoss(gamma=2.0)(*pair)) == pytest.approx(error, rel=1e-5)


def test_what_is_not_compared_does_not_matter(pair, compared):
    # A filter that is symmetric about the centre, so that real images have components at its frequencies alone.
    compared = compared | jnp.roll(jnp.flip(compared, axis=(1, 2)), 1, axis=(1, 2))
    prediction, target = pair
    elsewhere = keep_frequencies(jax.random.normal(jax.random.key(5), SHAPE), ~compared)
    loss = FrequencyLoss()
    assert float(loss(prediction + elsewhere, target, compared)) == pytest.approx(
        float(loss(prediction, target, compared)), rel=1e-5
    )
    # Only the epsilon and rounding are left where the compared parts agree.
    assert float(loss(target + elsewhere, target, compared)) < 2e-6
    assert float(loss(target + elsewhere, target, ~compared)) > 0.1


def test_the_gradient_is_finite_where_spectra_agree(pair):
    gradient = jax.grad(lambda x: FrequencyLoss()(x, pair[1]))(pair[1])
    assert np.isfinite(gradient).all() and not np.asarray(gradient).any()


@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_focal_weights(pair, over_batch, log):
    l = distances(*pair)  # noqa: E741
    weights = np.log(l**0.5 + 1) if log else l**0.5
    weights = weights / (weights.max() if over_batch else weights.max(axis=(3, 4), keepdims=True))
    loss = FrequencyLoss(focal_alpha=0.5, focal_log=log, focal_over_batch=over_batch)
    assert float(loss(*pair)) == pytest.approx((l * weights).mean(), rel=1e-5)


def test_focal_weights_get_no_gradient_and_a_perfect_image_none_at_all(pair):
    prediction, target = pair
    prediction = prediction.at[0].set(target[0])
    gradient = jax.grad(lambda x: FrequencyLoss(focal_alpha=1.0)(x, target))(prediction)
    leaf = torch.from_numpy(np.array(prediction)).requires_grad_()
    difference = torch.fft.fft2(leaf - torch.from_numpy(np.array(target)), dim=(1, 2), norm="ortho")
    l = (difference.real**2 + difference.imag**2 + 1e-12).sqrt()  # noqa: E741
    weights = l.detach() / l.detach().amax(dim=(1, 2), keepdim=True)
    weights[0] = 0.0
    (l * weights).mean().backward()
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), atol=1e-6 * float(leaf.grad.abs().max()) + 1e-9)
    assert not np.asarray(gradient[0]).any()


def test_tiles_and_averages(pair):
    assert float(FrequencyLoss(tiles=2)(*pair)) == pytest.approx(distances(*pair, tiles=2).mean(), rel=1e-5)
    averaged = FrequencyLoss(average_batch=True)(*pair)
    assert float(averaged) == pytest.approx(distances(*pair, average=True).mean(), rel=1e-5)
    assert not FrequencyLoss(tiles=2).can_select and not FrequencyLoss(average_batch=True).can_select


@pytest.mark.parametrize(("settings", "key"), [(dict(gamma=0.0), "gamma"), (dict(tiles=0), "tiles")])
def test_settings_that_cannot_work_are_refused(settings, key):
    with pytest.raises(ConfigError, match=rf"spectrum\.{key}"):
        FrequencyLoss(**settings)
