"""Images made from their number."""

import numpy as np

from mim_jax.data.sources.synthetic import SyntheticDataset

INDICES = np.arange(60)


def test_a_pure_function_of_the_index():
    examples = SyntheticDataset(100, (20, 12, 5)).open("train")
    images, labels = examples.gather(INDICES)
    assert images.shape == (60, 20, 12, 5) and images.dtype == np.uint8 and labels.dtype == np.int32
    again, _ = SyntheticDataset(100, (20, 12, 5)).open("train").gather(INDICES[10:20])
    np.testing.assert_array_equal(again, images[10:20])
    assert len(np.unique(images.reshape(60, -1), axis=0)) == 60
    assert labels.tolist() == [number % 10 for number in range(60)]


def test_splits_share_classes_but_not_images():
    dataset = SyntheticDataset(60, (16, 16, 3))
    train, labels = dataset.open("train").gather(INDICES)
    test, _ = dataset.open("test").gather(INDICES)
    assert (train != test).any(axis=(1, 2, 3)).all()
    means = np.stack([train[labels == label].mean(axis=0) for label in range(10)])
    distances = np.abs(test[:, None].astype(float) - means[None]).mean(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == labels).mean() > 0.9


def test_sizes_below_the_coarse_grid():
    images, _ = SyntheticDataset(5, (3, 4, 1)).open("train").gather(np.arange(5))
    assert images.shape == (5, 3, 4, 1)
