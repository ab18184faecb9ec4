"""How an encoder takes it when parts of an image are missing: accuracy and classes as blocks are removed.

The protocol of "Towards Improved Input Masking for Convolutional Neural Networks" (Balasubramanian and Feizi, ICCV
2023, arXiv 2211.14646) and of "Missingness Bias in Model Debugging" (Jain et al., ICLR 2022): blocks of 16x16 pixels
are removed in steps of 10 %. A network that takes the hole for an object predicts fewer classes, and other ones than
before.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mim_jax.contract import Variables
from mim_jax.errors import ConfigError
from mim_jax.evaluation.knn import knn_predict
from mim_jax.layers.filled_sites import FilledSites
from mim_jax.layers.patches import patch_grid
from mim_jax.models import statistics
from mim_jax.models.cnn import ConvEncoder
from mim_jax.normalization import normalization
from mim_jax.tasks.classification import Classification

Masking = Literal["layer", "grey", "black"]
MASKINGS: tuple[Masking, ...] = ("layer", "grey", "black")
SHARES = tuple(tenth / 10 for tenth in range(11))

# Classes `[B]` int32 of what is `visible [B, H, W]` of `images [B, H, W, C]` under a masking.
Predict = Callable[[jax.Array, jax.Array, Masking], jax.Array]


@dataclasses.dataclass(frozen=True)
class OcclusionPoint:
    """How a share of the blocks being removed changes predictions."""

    share: float  # of the blocks
    accuracy: float  # in percent
    unchanged: float  # predictions that are those for the intact image, in percent
    class_entropy: float  # in nats, of how often each class is predicted; at most log(classes)


def encode_visible(
    encoder: nn.Module,
    variables: Variables,
    images: jax.Array,
    visible: jax.Array,
    masking: Masking,
    *,
    black: Sequence[float] | np.ndarray | None = None,
) -> dict[str, jax.Array]:
    """Features of what is visible, as `encoder.split` gives them.

    Args:
      encoder: with "layer", a `ConvEncoder`; else any.
      variables: the contract's, of which `params/encoder` and `state/encoder` are read.
      images: normalised pixels `[B, H, W, C]`.
      visible: `[B, H, W]` bool.
      masking: "layer" (see `FilledSites`); "grey", the mean colour of the normalisation in hidden places; or "black".
      black: for that, black in normalised units `[C]`.

    Raises:
      ConfigError: the masking is unknown, or the encoder no convolutional one.
    """
    options: dict[str, Any] = {}
    if masking == "layer":
        if not isinstance(encoder, ConvEncoder):
            raise ConfigError(f"Layer masking is for convolutional encoders, not for {type(encoder).__name__}.")
        options["sites"] = FilledSites(visible=visible)
    elif masking in ("grey", "black"):
        color = jnp.zeros(images.shape[-1], images.dtype) if masking == "grey" else jnp.asarray(black, images.dtype)
        images = jnp.where(visible[..., None], images, color[None, None, None])
    else:
        raise ConfigError(f"The masking is {masking!r}; choose one of {', '.join(MASKINGS)}.")
    tokens, _ = statistics.apply(encoder, variables, "encoder", images, **options)
    return encoder.split(tokens)


def visible_logits(
    task: Classification, variables: Variables, images: jax.Array, visible: jax.Array, masking: Masking
) -> jax.Array:
    """Logits `[B, classes]` of a trained classifier for what is visible, see `encode_visible`."""
    mean, std = normalization(task.config)
    pooled = encode_visible(task.encoder, variables, images, visible, masking, black=-mean / std)["pooled"]
    classifier, params = task.classifier, variables["params"]
    if classifier.norm is not None:
        pooled = classifier.norm.apply({"params": params["norm"]}, pooled)
    return classifier.head.apply({"params": params["head"]}, pooled)


def classifier_predict(task: Classification, variables: Variables) -> Predict:
    """The classes of a trained classifier."""

    @functools.partial(jax.jit, static_argnames="masking")
    def predict(images: jax.Array, visible: jax.Array, masking: Masking) -> jax.Array:
        return visible_logits(task, variables, images, visible, masking).argmax(axis=-1).astype(jnp.int32)

    return predict


def neighbor_predict(
    encoder: nn.Module,
    variables: Variables,
    bank: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    black: Sequence[float] | np.ndarray | None = None,
) -> Predict:
    """The classes of the nearest intact images, for an encoder without a classifier.

    Args:
      encoder: a frozen encoder.
      variables: its, see `encode_visible`.
      bank: pooled features of intact images `[M, D]`.
      labels: their classes `[M]`.
      num_classes: how many there are.
      k: neighbours that vote, see `knn_predict`.
      temperature: of the vote.
      black: see `encode_visible`.
    """

    @functools.partial(jax.jit, static_argnames="masking")
    def predict(images: jax.Array, visible: jax.Array, masking: Masking) -> jax.Array:
        pooled = encode_visible(encoder, variables, images, visible, masking, black=black)["pooled"]
        options = dict(ks=(k,), temperature=temperature, num_classes=num_classes)
        return knn_predict(jnp.asarray(bank), jnp.asarray(labels, jnp.int32), pooled, **options)[0]

    return predict


def random_order(rng: jax.Array, batch_size: int, num_blocks: int) -> jax.Array:
    """At which place each block is removed, from 0: int32 `[B, N]`, by lot for every image."""
    noise = jax.random.uniform(rng, (batch_size, num_blocks), jnp.float32)
    return _places(noise)


def saliency_order(saliency: jax.Array, block: tuple[int, int]) -> jax.Array:
    """The same by `saliency [B, H, W]`: blocks with the most of it go first."""
    (height, width), (bh, bw) = saliency.shape[1:], block
    rows, columns = patch_grid((height, width), block)
    blocks = saliency.reshape(-1, rows, bh, columns, bw).sum(axis=(2, 4)).reshape(-1, rows * columns)
    return _places(-blocks)


def gradient_saliency(logits: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """How strongly the winning logit depends on each pixel: `[B, H, W]`, the channels' absolute gradients added up."""
    gradient = jax.grad(lambda x: logits(x).max(axis=-1).sum())(images)
    return jnp.abs(gradient).sum(axis=-1)


def visible_pixels(places: jax.Array, share: float, image_size: tuple[int, int], block: tuple[int, int]) -> jax.Array:
    """Which pixels are left when the first `share` of the blocks is removed: `[B, H, W]` bool."""
    rows, columns = patch_grid(image_size, block)
    kept = (places >= round(share * rows * columns)).reshape(-1, rows, columns)
    return jnp.repeat(jnp.repeat(kept, block[0], axis=1), block[1], axis=2)


def occlusion_curves(
    predict: Predict,
    batches: Iterable[tuple[jax.Array, np.ndarray, jax.Array]],
    *,
    num_classes: int,
    block: tuple[int, int] = (16, 16),
    shares: Sequence[float] = SHARES,
    maskings: Sequence[Masking] = MASKINGS,
) -> dict[Masking, list[OcclusionPoint]]:
    """Accuracy, unchanged predictions and class entropy over the share of blocks that is removed.

    Args:
      predict: classes of what is visible.
      batches: images `[B, H, W, C]`, normalised; their labels `[B]`; and `places [B, N]` of their blocks (see
        `random_order` and `saliency_order`).
      num_classes: how many there are.
      block: height and width of a block in pixels, which have to tile the images.
      shares: what to remove, in [0, 1].
      maskings: which to compare.

    Raises:
      ConfigError: there is no image.
    """
    found: dict[tuple[Masking, float], list[np.ndarray]] = {(m, s): [] for m in maskings for s in shares}
    intact, truth = [], []
    for images, labels, places in batches:
        size = images.shape[1:3]
        # Nothing is hidden: all maskings say the same.
        intact.append(np.asarray(predict(images, visible_pixels(places, 0.0, size, block), "grey")))
        truth.append(np.asarray(labels))
        for (masking, share), predictions in found.items():
            predictions.append(np.asarray(predict(images, visible_pixels(places, share, size, block), masking)))
    if not intact:
        raise ConfigError("There is no image to occlude; give at least one batch.")
    before, labels = np.concatenate(intact), np.concatenate(truth)
    curves: dict[Masking, list[OcclusionPoint]] = {masking: [] for masking in maskings}
    for (masking, share), predictions in found.items():
        after = np.concatenate(predictions)
        curves[masking].append(
            OcclusionPoint(
                share,
                accuracy=100.0 * float((after == labels).mean()),
                unchanged=100.0 * float((after == before).mean()),
                class_entropy=class_entropy(after, num_classes),
            )
        )
    return curves


def class_entropy(classes: np.ndarray, num_classes: int) -> float:
    """Entropy in nats of how often each class occurs among `classes [N]`."""
    frequency = np.bincount(classes, minlength=num_classes) / len(classes)
    return float((frequency * np.log(1.0 / np.where(frequency > 0.0, frequency, 1.0))).sum())


def _places(values: jax.Array) -> jax.Array:
    """Each value's place in its row's rising order, `[B, N]` int32."""
    order = jnp.argsort(values, axis=1, stable=True)
    return jnp.argsort(order, axis=1).astype(jnp.int32)
