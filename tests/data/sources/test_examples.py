"""Arrays are checked before they are trained on."""

import numpy as np
import pytest

from mim_jax.data.sources.examples import ArrayExamples
from mim_jax.errors import DataError

IMAGES = np.zeros((4, 6, 5, 3), np.uint8)


def test_attributes():
    examples = ArrayExamples("test", IMAGES, np.array([[0], [2], [1], [0]]))
    assert len(examples) == 4 and examples.image_shape == (6, 5, 3)
    assert examples.num_classes == 3 and examples.class_names is None
    assert examples.labels.dtype == np.int32 and examples.labels.tolist() == [0, 2, 1, 0]


def test_gathered_images_are_copies():
    examples = ArrayExamples("test", IMAGES.copy(), np.arange(4))
    images, labels = examples.gather(np.array([2, 2, 0]))
    images += 1
    assert labels.tolist() == [2, 2, 0] and not examples.images.any()


def test_forms_of_pixels():
    assert ArrayExamples("test", IMAGES[..., 0], None).image_shape == (6, 5, 1)
    deep = ArrayExamples("test", np.full((1, 2, 2), 65535, np.uint16), None)
    assert deep.images.dtype == np.float32 and (deep.images == 1.0).all()
    assert ArrayExamples("test", np.ones((1, 2, 2)), None).images.dtype == np.float32


def test_the_fingerprint_follows_pixels_and_labels():
    base = ArrayExamples("test", IMAGES, np.arange(4)).fingerprint
    changed = IMAGES.copy()
    changed[3, 0, 0, 0] = 1
    assert base == ArrayExamples("other name", IMAGES.copy(), np.arange(4)).fingerprint
    assert base != ArrayExamples("test", changed, np.arange(4)).fingerprint
    assert base != ArrayExamples("test", IMAGES, np.arange(4)[::-1]).fingerprint


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES[0, 0], None, None, r"The images of test have shape \(5, 3\)"),
        (IMAGES[:0], None, None, r"test is empty: its images have shape \(0, 6, 5, 3\)"),
        (IMAGES.astype(np.int32), None, None, "The images of test are int32; store uint8"),
        (IMAGES + 2.0, None, None, "hold floats from 2.0 to 2.0; scale them to"),
        (IMAGES - 0.5, None, None, "hold floats from -0.5"),
        (np.full((1, 2, 2), np.nan), None, None, "hold floats from nan"),
        (IMAGES, np.arange(3), None, r"4 images but labels of shape \(3,\)"),
        (IMAGES, np.zeros(4), None, "The labels of test are float64; they must be integers"),
        (IMAGES, np.array([0, -1, 0, 0]), None, "Label -1 of example 1 of test lies outside"),
        (IMAGES, np.array([0, 1, 2, 1]), ("a", "b"), r"Label 2 of example 2 of test lies outside \[0, 2\)"),
    ],
)
def test_bad_arrays(images, labels, names, message):
    with pytest.raises(DataError, match=message):
        ArrayExamples("test", images, labels, names)
