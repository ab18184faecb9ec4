import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_jax.evaluation.zero_shot import (
    different_objects,
    overlap,
    pair_similarities,
    prompt_map,
    same_object,
    threshold_iou,
    upsample,
)

GRID = (3, 4)
OBJECTS = np.array([[0, 0, 1, 1, 0, 0, 1, 1, 2, 2, -1, -1], [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3]], np.int32)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).normal(size=(2, 12, 5)).astype(np.float32)


def test_a_prompt_is_like_itself_and_lengths_do_not_matter(tokens):
    prompts = np.array([[0, 5, 11], [3, 3, 7]], np.int32)
    maps = np.asarray(prompt_map(tokens, prompts))
    assert maps.shape == (2, 3, 12) and np.abs(maps).max() <= 1 + 1e-6
    np.testing.assert_allclose(np.take_along_axis(maps, prompts[:, :, None], axis=2), 1.0, rtol=1e-6)
    lengths = np.random.default_rng(1).uniform(0.1, 9.0, (2, 12, 1)).astype(np.float32)
    np.testing.assert_allclose(prompt_map(tokens * lengths, prompts), maps, rtol=1e-4, atol=1e-6)
    expected = F.cosine_similarity(torch.from_numpy(tokens[1, 7]), torch.from_numpy(tokens[1]), dim=1)
    np.testing.assert_allclose(maps[1, 2], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("image", [0, 1])
def test_perfect_features_have_iou_one_at_any_threshold(image):
    features = jnp.eye(5)[OBJECTS[image] + 1][None]
    prompts = jnp.arange(12, dtype=jnp.int32)[None]
    maps = upsample(prompt_map(features, prompts), GRID, GRID)
    of_prompt = (OBJECTS[image][:, None] == OBJECTS[image][None]).reshape(1, 12, *GRID)
    iou = threshold_iou(maps, of_prompt, (0.01, 0.5, 0.99))
    np.testing.assert_array_equal(iou, np.ones((1, 12, 3)))


def test_maps_are_enlarged_as_pytorch_does():
    maps = np.random.default_rng(0).normal(size=(2, 3, 12)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(maps).reshape(2, 3, *GRID), (12, 20), mode="bilinear")
    np.testing.assert_allclose(upsample(jnp.asarray(maps), GRID, (12, 20)), expected, rtol=1e-5, atol=1e-6)


def test_iou_by_hand():
    maps = jnp.asarray([[[0.1, 0.6], [0.8, 0.3]]])
    objects = jnp.asarray([[[False, True], [True, True]]])
    iou = threshold_iou(maps, objects, (0.0, 0.5, 0.7, 0.9))
    np.testing.assert_allclose(iou, [[3 / 4, 2 / 3, 1 / 3, 0.0]])
    empty = threshold_iou(maps, jnp.zeros_like(objects), (0.7, 0.9))
    np.testing.assert_array_equal(empty, [[0.0, 1.0]])


def test_pairs_within_and_between_objects():
    same, different = (np.asarray(pairs(jnp.asarray(OBJECTS))) for pairs in (same_object, different_objects))
    for image, objects in enumerate(OBJECTS):
        for first in range(12):
            for second in range(12):
                counts = first < second and objects[first] >= 0 and objects[second] >= 0
                alike = objects[first] == objects[second]
                assert same[image, first, second] == (counts and alike)
                assert different[image, first, second] == (counts and not alike)


def test_similarities_of_pairs_are_numpys(tokens):
    pairs = same_object(jnp.asarray(OBJECTS))
    found = jax.jit(pair_similarities, static_argnums=2)(tokens, pairs, 20)
    unit = tokens / np.linalg.norm(tokens, axis=2, keepdims=True)
    cosines = np.einsum("bnd,bmd->bnm", unit, unit)[np.asarray(pairs)]
    np.testing.assert_array_equal(found.histogram, np.histogram(cosines, bins=20, range=(-1, 1))[0])
    np.testing.assert_allclose(found.total, cosines.sum(), rtol=1e-4, atol=1e-5)
    extremes = np.array([[[1, 0], [1, 0], [-1, 0]]], np.float32)
    ends = pair_similarities(extremes, same_object(jnp.zeros((1, 3), jnp.int32)), 4)
    np.testing.assert_array_equal(ends.histogram, [2, 0, 0, 1])


def test_overlap_of_histograms():
    one = np.array([1, 2, 3, 0, 0])
    assert overlap(one, one) == pytest.approx(1.0)
    assert overlap(one, 7 * one) == pytest.approx(1.0)
    assert overlap(one, np.array([0, 0, 0, 5, 1])) == 0.0
    assert overlap(np.array([1, 1, 0]), np.array([0, 1, 1])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="without counts"):
        overlap(one, np.zeros(5))
