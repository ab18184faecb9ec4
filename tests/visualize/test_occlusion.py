"""Removing blocks of an image, and what is said of a classifier while that goes on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.layers.filled_sites import FilledSites
from mim_jax.visualize.occlusion import (
    MASKINGS,
    class_entropy,
    classifier_predict,
    encode_visible,
    gradient_saliency,
    neighbor_predict,
    occlusion_curves,
    random_order,
    saliency_order,
    visible_logits,
    visible_pixels,
)

KEY = jax.random.key(0)
SIZE, BLOCK, CLASSES = 16, (4, 4), 5


@pytest.fixture(scope="module")
def task():
    config = mim_jax.default_config(task="classification", backbone="resnet")
    config.update(image_size=SIZE, num_classes=CLASSES)
    config.model.update(depths=(1, 1), widths=(4, 6), stem="small", stem_width=4)
    return mim_jax.create(config)


@pytest.fixture(scope="module")
def variables(task):
    variables = jax.jit(lambda: task.init(KEY, task.batch_spec()))()
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(KEY, head["kernel"].shape)  # as initialised it would tell nothing apart
    return variables


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (6, SIZE, SIZE, 3))


@pytest.fixture(scope="module")
def visible():
    return visible_pixels(random_order(KEY, 6, 16), 0.5, (SIZE, SIZE), BLOCK)


def test_blocks_go_one_after_the_other():
    places = random_order(KEY, 3, 16)
    np.testing.assert_array_equal(np.sort(places, axis=1), np.tile(np.arange(16), (3, 1)))
    assert len({tuple(row) for row in np.asarray(places).tolist()}) == 3
    before = np.ones((3, SIZE, SIZE), bool)
    for share in (0.0, 0.25, 0.5, 1.0):
        pixels = np.asarray(visible_pixels(places, share, (SIZE, SIZE), BLOCK))
        assert (pixels.mean(axis=(1, 2)) == 1.0 - share).all()
        assert (pixels <= before).all()  # what is gone stays gone
        blocks = pixels.reshape(3, 4, 4, 4, 4).mean(axis=(2, 4))
        assert set(np.unique(blocks)) <= {0.0, 1.0}
        before = pixels


def test_the_most_salient_block_goes_first():
    saliency = np.zeros((2, SIZE, SIZE), np.float32)
    saliency[0, 5, 6] = 3.0  # block 5
    saliency[0, 8:12, 0:4] = 0.1  # block 8
    saliency[1, 15, 15] = 1.0  # block 15
    places = np.asarray(saliency_order(jnp.asarray(saliency), BLOCK))
    assert places[0, 5] == 0 and places[0, 8] == 1 and places[1, 15] == 0
    assert not np.asarray(visible_pixels(places, 1 / 16, (SIZE, SIZE), BLOCK))[0, 4:8, 4:8].any()


def test_saliency_is_the_gradient_of_the_winner():
    weights = np.random.default_rng(0).normal(size=(4 * 4 * 3, 3)).astype(np.float32)
    images = jax.random.normal(KEY, (2, 4, 4, 3))
    logits = lambda x: x.reshape(2, -1) @ weights
    winners = np.asarray(logits(images).argmax(axis=-1))
    expected = np.abs(weights[:, winners].T.reshape(2, 4, 4, 3)).sum(axis=-1)
    np.testing.assert_allclose(gradient_saliency(logits, images), expected, rtol=1e-5)


def test_nothing_hidden_is_the_task_itself(task, variables, images):
    everything = jnp.ones((6, SIZE, SIZE), bool)
    expected = jax.jit(task.predict)(variables, images)
    for masking in MASKINGS:
        logits = jax.jit(visible_logits, static_argnums=(0, 4))(task, variables, images, everything, masking)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_what_each_masking_shows(task, variables, images, visible):
    def pooled(masking, **options):
        return encode_visible(task.encoder, variables, images, visible, masking, **options)["pooled"]

    def encoded(pictures):
        return task.encode(variables, pictures)["pooled"]

    mean, std = mim_jax.data.normalization(task.config)
    black = (-mean / std).astype(np.float32)
    np.testing.assert_allclose(pooled("grey"), encoded(jnp.where(visible[..., None], images, 0.0)), atol=1e-6)
    hidden = jnp.where(visible[..., None], images, black[None, None, None])
    np.testing.assert_allclose(pooled("black", black=black), encoded(hidden), atol=1e-6)
    rule = {"sites": FilledSites(visible=visible)}
    tokens = task.encoder.apply(
        {"params": variables["params"]["encoder"], "batch_stats": variables["state"]["encoder"]}, images, **rule
    )
    np.testing.assert_allclose(pooled("layer"), task.encoder.split(tokens)["pooled"], atol=1e-6)
    changed = jnp.where(visible[..., None], images, 9.0)
    np.testing.assert_array_equal(
        encode_visible(task.encoder, variables, changed, visible, "layer")["pooled"], pooled("layer")
    )


def test_layer_masking_is_for_convolutions(task, variables, images, visible):
    vit = mim_jax.create(mim_jax.load_config("configs/supervised_fashion_mnist.py"))
    with pytest.raises(ConfigError, match="is for convolutional encoders, not for ViT"):
        encode_visible(vit.encoder, {}, images, visible, "layer")
    with pytest.raises(ConfigError, match="choose one of layer, grey, black"):
        encode_visible(task.encoder, variables, images, visible, "white")


def test_curves_count_what_is_predicted():
    """A stand-in for a classifier: the number of columns of blocks that are whole, or 0 where its masking fails."""

    def predict(images, visible, masking):
        whole = visible.reshape(-1, SIZE, 4, 4).all(axis=(1, 3)).sum(axis=1)
        return jnp.where(masking == "grey", whole, 0).astype(jnp.int32) if masking != "layer" else whole

    images = jnp.zeros((4, SIZE, SIZE, 3))
    columns = jnp.tile(jnp.arange(16) % 4, (2, 1)) * 4 + jnp.tile(jnp.arange(16) // 4, (2, 1))  # one by one
    batches = [(images[:2], np.array([4, 2]), columns), (images[2:], np.array([2, 4]), columns)]
    curves = occlusion_curves(predict, batches, num_classes=CLASSES, block=BLOCK, shares=(0.0, 0.5))
    assert list(curves) == list(MASKINGS)
    start, half = curves["layer"]
    assert (start.share, start.accuracy, start.unchanged, start.class_entropy) == (0.0, 50.0, 100.0, 0.0)
    assert (half.share, half.accuracy, half.unchanged, half.class_entropy) == (0.5, 50.0, 0.0, 0.0)
    assert curves["black"][0].accuracy == curves["black"][1].unchanged == 0.0
    with pytest.raises(ConfigError, match="no image to occlude"):
        occlusion_curves(predict, [], num_classes=CLASSES)


def test_class_entropy():
    assert class_entropy(np.array([1, 1, 1]), CLASSES) == 0.0
    assert class_entropy(np.arange(CLASSES), CLASSES) == pytest.approx(math.log(CLASSES))
    assert class_entropy(np.array([0, 0, 4, 4]), CLASSES) == pytest.approx(math.log(2))


def test_a_classifier_and_neighbours_have_curves(task, variables, images):
    labels = np.asarray(jax.jit(task.predict)(variables, images).argmax(axis=-1))
    batches = [(images, labels, random_order(KEY, 6, 16))]
    options = dict(num_classes=CLASSES, block=BLOCK, shares=(0.0, 0.5))
    curves = occlusion_curves(classifier_predict(task, variables), batches, **options)
    assert all(curves[masking][0].accuracy == curves[masking][0].unchanged == 100.0 for masking in MASKINGS)
    bank = jax.jit(task.encode)(variables, images)["pooled"]
    nearest = neighbor_predict(
        task.encoder, variables, bank, labels, num_classes=CLASSES, k=1, black=np.full(3, -2.0, np.float32)
    )
    curves = occlusion_curves(nearest, batches, **options)
    assert all(curves[masking][0].accuracy == 100.0 for masking in MASKINGS)
