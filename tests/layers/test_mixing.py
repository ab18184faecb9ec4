import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.layers import mixing
from mim_jax.targets.labels import smoothed_targets

SIZE = (12, 20)


def _config(**changes):
    config = mixing.default_config()
    config.update(changes)
    return config


def _draws(config, count=200, size=SIZE):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.jit(jax.vmap(lambda key: mixing.draw_mixing(key, size, config)))(keys)


def test_mixup_is_a_convex_combination_with_the_reversed_batch():
    images = jax.random.normal(jax.random.key(1), (4, *SIZE, 3))
    targets = jax.nn.one_hot(jnp.arange(4), 5)
    mixed = mixing.mixup(jax.random.key(2), SIZE, 0.8)
    weight = float(mixed.weight)
    assert 0.0 < weight < 1.0
    x, y = np.asarray(images), np.asarray(targets)
    np.testing.assert_allclose(mixed.images(images), weight * x + (1 - weight) * x[::-1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mixed.targets(targets), weight * y + (1 - weight) * y[::-1], rtol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_one_box_and_weighs_the_label_by_its_area(seed):
    images = jax.random.normal(jax.random.key(1), (4, *SIZE, 3))
    mixed = mixing.cutmix(jax.random.key(seed), SIZE, 1.0)
    out, x = np.asarray(mixed.images(images)), np.asarray(images)
    pasted = (out != x).any(axis=(0, 3))
    rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
    assert pasted.sum() == len(rows) * len(columns)
    if len(rows):
        box = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_array_equal(out[box], x[::-1][box])
    np.testing.assert_array_equal(out[:, ~pasted], x[:, ~pasted])
    assert float(mixed.weight) == pytest.approx(1.0 - pasted.sum() / (SIZE[0] * SIZE[1]), abs=1e-7)


def test_cutmix_box_follows_the_formula(monkeypatch):
    monkeypatch.setattr(jax.random, "beta", lambda *args, **kwargs: jnp.asarray(0.5, jnp.float32))
    centres = iter([1, 10])
    monkeypatch.setattr(jax.random, "randint", lambda *args, **kwargs: jnp.asarray(next(centres), jnp.int32))
    mixed = mixing.cutmix(jax.random.key(0), SIZE, 1.0)
    # int(12 * sqrt(0.5)) = 8 rows about 1, clipped to 0..4; int(20 * sqrt(0.5)) = 14 columns about 10: 3..16.
    expected = np.ones(SIZE, np.float32)
    expected[0:5, 3:17] = 0.0
    np.testing.assert_array_equal(mixed.share, expected)
    assert float(mixed.weight) == pytest.approx(1 - 5 * 14 / (12 * 20))


def test_targets_sum_to_one_after_smoothing_and_mixing():
    targets = smoothed_targets(jnp.asarray([0, 3, 999, 5], jnp.int32), 1000, 0.1)
    for seed in range(4):
        mixed = mixing.draw_mixing(jax.random.key(seed), SIZE, _config())
        np.testing.assert_allclose(mixed.targets(targets).sum(axis=1), 1.0, rtol=1e-5)


def test_choice_between_mixup_and_cutmix_and_nothing():
    drawn = _draws(_config(probability=0.8, cutmix_share=0.25), count=600)
    share = np.asarray(drawn.share).reshape(600, -1)
    blended = (share == share[:, :1]).all(axis=1) & (share[:, 0] < 1.0) & (share[:, 0] > 0.0)
    boxed = (share == 0.0).any(axis=1) & (share == 1.0).any(axis=1)
    unmixed = (share == 1.0).all(axis=1)
    assert blended.mean() == pytest.approx(0.6, abs=0.06)
    assert boxed.mean() == pytest.approx(0.2, abs=0.05)
    assert unmixed.mean() >= 0.15  # also CutMix boxes that came out empty
    np.testing.assert_array_equal(np.asarray(drawn.weight)[unmixed], 1.0)


def test_switched_off_kinds_are_never_drawn():
    only_boxes = np.asarray(_draws(_config(mixup_alpha=0.0)).share)
    assert set(np.unique(only_boxes)) == {0.0, 1.0}
    only_blends = np.asarray(_draws(_config(cutmix_alpha=0.0)).share)
    assert (only_blends == only_blends[:, :1, :1]).all()
    assert not mixing.is_on(_config(mixup_alpha=0.0, cutmix_alpha=0.0))
    assert not mixing.is_on(_config(probability=0.0))
    assert mixing.is_on(_config())


def test_beta_distribution_of_the_mixup_weight():
    weight = np.asarray(_draws(_config(cutmix_alpha=0.0), count=4000, size=(1, 1)).weight)
    assert weight.mean() == pytest.approx(0.5, abs=0.02)
    assert weight.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.005)  # of Beta(0.8, 0.8)


def test_odd_batch_keeps_its_middle_image():
    images = jax.random.normal(jax.random.key(1), (3, *SIZE, 1))
    mixed = mixing.mixup(jax.random.key(2), SIZE, 0.8)
    np.testing.assert_allclose(mixed.images(images)[1], images[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{"probability": 1.5}, {"cutmix_share": -0.1}, {"mixup_alpha": -1.0}])
def test_values_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        mixing.check_config(_config(**changes))
