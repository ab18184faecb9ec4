"""The training and evaluation transforms."""

import numpy as np
import pytest

from mim_jax.data.sources.examples import ArrayExamples
from mim_jax.data.transform import eval_transform, train_transform
from mim_jax.errors import ConfigError, DataError
from tests.data.make import config


def examples(shape=(4, 16, 16, 3), dtype=np.uint8) -> ArrayExamples:
    return ArrayExamples("test", np.zeros(shape, dtype), None)


def test_training_crops_are_random_and_evaluation_is_not():
    run = config("synthetic:4", image_size=8)
    train, evaluation = train_transform(run, examples()), eval_transform(run, examples())
    draws = train.draws(np.arange(3))
    views = [train.view(100, 100, row) for row in draws.tolist()]
    assert len(set(views)) == 3
    assert evaluation.draws(np.arange(3)) is None
    assert evaluation.view(100, 100, None).box == pytest.approx((100 / 9 * 0, 0, 800 / 9, 800 / 9))
    assert not evaluation.flip and evaluation.augment is None and evaluation.random_erasing == 0.0


def test_resize_squashes_everything():
    run = config("synthetic:4", crop="resize", eval_crop="resize")
    for transform in (train_transform(run, examples()), eval_transform(run, examples((4, 20, 30, 3)))):
        assert transform.view(20, 30, None).region == (0, 0, 20, 30)
        assert transform.view(20, 30, None).box == (0.0, 0.0, 20.0, 30.0)


def test_half_of_the_images_are_flipped():
    run = config("synthetic:4", channels=1, crop="none", mean=(0.0,), std=(1.0,))
    transform = train_transform(run, examples((4, 16, 16, 1)))
    pixels = np.zeros((2000, 16, 16, 1), np.uint8)
    pixels[:, :, 0] = 255
    out = np.empty(pixels.shape, np.float32)
    transform.finish(pixels, np.arange(2000), out)
    left, right = out[:, 0, 0, 0], out[:, 0, -1, 0]
    np.testing.assert_allclose(left + right, 1.0)
    assert 0.46 < right.mean() < 0.54


def test_erasing_follows_normalisation():
    run = config("synthetic:4", random_erasing=1.0, flip=False, crop="none", mean=(0.5,) * 3, std=(0.01,) * 3)
    transform = train_transform(run, examples())
    out = np.empty((4, 16, 16, 3), np.float32)
    transform.finish(np.zeros(out.shape, np.uint8), np.arange(4), out)
    for image in out:
        erased = np.abs(image + 50.0) > 1.0  # an untouched pixel is -50 after normalisation
        assert 0.01 < erased.mean() < 0.4
        assert np.abs(image[erased]).max() < 6.0


@pytest.mark.parametrize(
    ("key", "value", "off"), [("rand_augment", "rand-m9-p1", None), ("trivial_augment", True, False)]
)
def test_augmentation_precedes_normalisation(key, value, off):
    run = config("synthetic:4", crop="none", flip=False, **{key: value})
    transform = train_transform(run, examples())
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    out, plain = np.empty(pixels.shape, np.float32), np.empty(pixels.shape, np.float32)
    transform.finish(pixels.copy(), np.arange(6), out)
    run.data[key] = off
    train_transform(run, examples()).finish(pixels.copy(), np.arange(6), plain)
    assert ((out != plain).any(axis=(1, 2, 3))).sum() >= 4
    assert out.min() >= plain.min() - 0.1 and out.max() <= plain.max() + 0.1


@pytest.mark.parametrize(("key", "value"), [("rand_augment", "rand-m9"), ("trivial_augment", True)])
def test_floats_cannot_be_augmented(key, value):
    run = config("synthetic:4", **{key: value})
    with pytest.raises(ConfigError, match=f"data.{key} needs 8-bit images of 1 or 3 channels, but test is read as"):
        train_transform(run, examples(dtype=np.float32))


def test_crop_none_checks_every_picture():
    run = config("synthetic:4", crop="none")
    with pytest.raises(DataError, match="an image of 16x20 pixels came up and image_size is 16x16"):
        train_transform(run, examples()).view(16, 20, None)
