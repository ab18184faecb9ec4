"""Draws what becomes of photographs of which a convolutional network may see a part only, and what that does to one.

    python tools/occlusion_gallery.py [--out=docs/images/occlusion.png] [--seed=0]
    python tools/occlusion_gallery.py --workdir=runs/NAME [--examples=1000]

Upper part: scikit-learn's two sample photographs with half of their 16x16 blocks removed: grey, black, and as layer
masking has them, filled from the neighbours before the first convolution; and which sites of the first maps of a ResNet
are visible then. Lower part, with a run of the task "classification" whose backbone is a ResNet or a ConvNeXt, such as
configs/supervised_resnet_fashion_mnist.py: accuracy, unchanged predictions and class entropy on its evaluation split,
as blocks are removed at random and by saliency.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from masks_gallery import photographs

import mim_jax
from mim_jax.cli import run_main
from mim_jax.data.config import image_hw
from mim_jax.errors import ConfigError
from mim_jax.layers.filled_sites import FilledSites, fill_from_neighbors
from mim_jax.layers.patches import patch_grid
from mim_jax.normalization import IMAGENET
from mim_jax.tasks.classification import Classification
from mim_jax.training.checkpoint import load_run
from mim_jax.visualize.occlusion import (
    OcclusionPoint,
    classifier_predict,
    gradient_saliency,
    occlusion_curves,
    random_order,
    saliency_order,
    visible_pixels,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLOCK = (16, 16)
STEM = 7  # size of the kernel of a ResNet's first convolution
BATCH = 100
QUANTITIES = {
    "accuracy": "accuracy, %",
    "unchanged": "unchanged predictions, %",
    "class_entropy": "class entropy, nats",
}
Curves = dict[str, list[OcclusionPoint]]


def occluded_photographs(seed: int) -> list[dict[str, np.ndarray]]:
    """Pictures of each photograph by title, `[H, W, 3]` in [0, 1] or masks `[h, w]`."""
    mean, std = (np.asarray(values, np.float32) for values in IMAGENET)
    photos = photographs()
    images = jnp.asarray((photos - mean) / std)
    rows, columns = patch_grid(images.shape[1:3], BLOCK)
    places = random_order(jax.random.key(seed), len(photos), rows * columns)
    visible = visible_pixels(places, 0.5, images.shape[1:3], BLOCK)
    rule = FilledSites(visible=visible)
    kernel = jnp.zeros((STEM, STEM, 3, 1), jnp.float32)
    entered = rule.enter(images)
    stem = rule.convolve(entered, kernel, None, 2)
    pooled = rule.max_pool(stem, 3, 2)
    filled = fill_from_neighbors(entered.features, entered.visible, STEM)
    hidden = ~np.asarray(visible)[..., None]
    pictures = []
    for n, photo in enumerate(photos):
        pictures.append(
            {
                "the photograph": photo,
                "half removed: grey": np.where(hidden[n], mean, photo),
                "black": np.where(hidden[n], np.float32(0), photo),
                f"filled, {STEM} rings": np.asarray(filled[n]) * std + mean,
                **{
                    f"visible after the {name}: {float(x.visible[n].mean()):.0%}": np.asarray(x.visible[n, ..., 0])
                    for name, x in (("stem", stem), ("pooling", pooled))
                },
            }
        )
    return pictures


def curves_of_run(workdir: str, num_examples: int, seed: int) -> dict[str, Curves]:
    """Curves of a run's classifier by the order in which blocks are removed.

    Blocks are a fourteenth of the image high and wide where that divides it, as 16 of 224 pixels are, else a seventh.

    Raises:
      ConfigError: the run is not one of a convolutional classifier, or no such block fits.
    """
    run = load_run(workdir)
    task, config = run.objective, run.config
    if not isinstance(task, Classification):
        raise ConfigError(f"{workdir} is a run of {config.method or config.task!r}; give one of 'classification'.")
    size = image_hw(config.image_size)
    pieces = next((n for n in (14, 7) if size[0] % n == size[1] % n == 0), None)
    if pieces is None:
        raise ConfigError(f"image_size {size} of {workdir} is not divisible into 7 or 14 blocks.")
    block = (size[0] // pieces, size[1] // pieces)
    predict = classifier_predict(task, run.variables)
    saliency = jax.jit(lambda x: gradient_saliency(functools.partial(task.predict, run.variables), x))
    indices = np.arange(num_examples - num_examples % BATCH)

    def batches(by_saliency: bool) -> Iterator[tuple]:
        found = mim_jax.data.eval_batches(config, batch_size=BATCH, indices=indices)
        for number, batch in enumerate(found):
            images, rng = jnp.asarray(batch["image"]), jax.random.fold_in(jax.random.key(seed), number)
            chance = random_order(rng, len(images), pieces**2)
            yield images, batch["label"], saliency_order(saliency(images), block) if by_saliency else chance

    options = dict(num_classes=config.num_classes, block=block)
    return {
        "random blocks": occlusion_curves(predict, batches(False), **options),
        "most salient blocks first": occlusion_curves(predict, batches(True), **options),
    }


def draw(pictures: list[dict[str, np.ndarray]], curves: dict[str, Curves], out: pathlib.Path) -> None:
    """One figure of both."""
    figure = plt.figure(figsize=(13, 4.6 + 2.6 * len(curves)), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=(4.6, 2.6 * len(curves))) if curves else [figure]
    axes = parts[0].subplots(len(pictures), len(pictures[0]))
    for row, titled in zip(axes, pictures, strict=True):
        for axis, (title, picture) in zip(row, titled.items(), strict=True):
            axis.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=8)
            axis.set_axis_off()
    if curves:
        axes = np.atleast_2d(parts[1].subplots(len(curves), len(QUANTITIES)))
        for row, (order, found) in zip(axes, curves.items(), strict=True):
            for axis, (name, label) in zip(row, QUANTITIES.items(), strict=True):
                for masking, points in found.items():
                    axis.plot([100 * p.share for p in points], [getattr(p, name) for p in points], ".-", label=masking)
                axis.set(xlabel=f"{order} removed, %", ylabel=label)
                axis.grid(alpha=0.3)
        axes[0][0].legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)
    plt.close(figure)


def table(curves: dict[str, Curves]) -> str:
    """The numbers of the curves."""
    lines = []
    for order, found in curves.items():
        lines.append(f"{order}: accuracy / unchanged / class entropy")
        for masking, points in found.items():
            values = (f"{p.accuracy:.1f}/{p.unchanged:.1f}/{p.class_entropy:.2f}" for p in points)
            lines.append(f"  {masking:6} {'  '.join(values)}")
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the command line's flags."""
    flags.DEFINE_string("out", "docs/images/occlusion.png", "Where the figure goes.")
    flags.DEFINE_string("workdir", None, "A run of a convolutional classifier.")
    flags.DEFINE_integer("examples", 1000, "How many images of its evaluation split.", lower_bound=BATCH)
    flags.DEFINE_integer("seed", 0, "Of everything random.")


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Draws the gallery."""
    if config_path or overrides:
        raise ConfigError("The gallery takes no config.")
    given = flags.FLAGS
    curves = {} if given.workdir is None else curves_of_run(given.workdir, given.examples, given.seed)
    draw(occluded_photographs(given.seed), curves, pathlib.Path(given.out))
    print(table(curves) if curves else given.out)


if __name__ == "__main__":
    define_flags()
    run_main(main)
