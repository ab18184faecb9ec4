"""When unreadable images are tolerated and when they end the run."""

import logging

import pytest

from mim_jax.data.bad_images import BadImages
from mim_jax.errors import DataError


def test_each_file_is_named_once(caplog):
    bad = BadImages(1.0, 10)
    with caplog.at_level(logging.WARNING):
        bad.bad("a.jpg", "cut off")
        bad.bad("a.jpg", "cut off")
        bad.bad("b.jpg", "not an image")
    assert [record.getMessage() for record in caplog.records] == [
        "Unreadable image a.jpg: cut off (1 of 1 so far).",
        "Unreadable image b.jpg: not an image (3 of 3 so far).",
    ]
    assert (bad.count, bad.total) == (3, 3)


def test_a_few_images_prove_nothing():
    bad = BadImages(0.01, 10**6)
    bad.bad("a.jpg", "cut off")
    for _ in range(998):
        bad.good()
    bad.check()
    for number in range(9):
        bad.bad(f"{number}.jpg", "cut off")
    with pytest.raises(DataError, match="11 of 1009 images .* 0.01; .* a.jpg .cut off.; 0.jpg .* 3.jpg .cut off..$"):
        bad.bad("last.jpg", "cut off")


def test_a_small_set_is_judged_after_one_pass():
    bad = BadImages(0.1, 4)
    bad.bad("a.jpg", "cut off")
    bad.good()
    bad.good()
    with pytest.raises(DataError, match="2 of 4 images"):
        bad.bad("b.jpg", "cut off")


def test_the_final_check_has_no_minimum():
    bad = BadImages(0.1, 10**6)
    bad.good()
    bad.check()
    bad.bad("a.jpg", "cut off")
    with pytest.raises(DataError, match=r"1 of 2 images could not be read and data.max_bad_fraction is 0.1"):
        bad.check()
