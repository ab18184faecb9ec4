"""Impossible settings are refused with the key, the value and the remedy."""

import pytest

from mim_jax.data.config import check_config, eval_resize, image_hw
from mim_jax.errors import ConfigError
from tests.data.make import config


def test_the_defaults_are_possible():
    check_config(config("synthetic:10"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(crop="center"), "data.crop is 'center'; choose one of 'random_resized', 'window', 'resize', 'none'"),
        (dict(eval_crop="five"), "data.eval_crop is 'five'; choose one of 'center', 'resize'"),
        (dict(interpolation="cubic"), "data.interpolation is 'cubic'; choose one of 'bicubic', 'bilinear'"),
        (dict(crop_scale=(0.5, 0.2)), r"data.crop_scale is \(0.5, 0.2\)"),
        (dict(crop_scale=(0.5, 1.2)), "data.crop_scale"),
        (dict(crop_scale=(0.5,)), "data.crop_scale is .* two numbers"),
        (dict(crop_ratio=(-1.0, 1.0)), "data.crop_ratio"),
        (dict(random_erasing=1.5), r"data.random_erasing is 1.5; it must lie in \[0, 1\]"),
        (dict(max_bad_fraction=-0.1), "data.max_bad_fraction"),
        (dict(num_workers=0), "data.num_workers is 0"),
        (dict(prefetch=0), "data.prefetch is 0"),
        (dict(repeats=0), "data.repeats is 0; it must be at least 1"),
        (dict(rand_augment="rand-m9", trivial_augment=True), "data.trivial_augment are alternatives; set rand_augment"),
        (dict(channels=0), "channels is 0"),
        (dict(eval_resize=8), "data.eval_resize is 8, smaller than image_size 16"),
        (dict(image_size=0), "image_size is 0"),
        (dict(image_size=(8, 8, 8)), "image_size is"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_config(config("synthetic:10", **changes))


def test_image_sizes():
    assert image_hw(224) == (224, 224) and image_hw((12, 20)) == (12, 20) and image_hw([12, 20]) == (12, 20)


@pytest.mark.parametrize(("size", "expected"), [(224, 256), (384, 438), ((224, 448), 256)])
def test_the_resize_before_the_centre_crop(size, expected):
    assert eval_resize(config("synthetic:10", image_size=size)) == expected
    assert eval_resize(config("synthetic:10", image_size=size, eval_resize=500)) == 500
