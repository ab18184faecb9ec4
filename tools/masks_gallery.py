"""Draws every way of hiding things on a photograph into one figure.

    python tools/masks_gallery.py [--out=docs/images/masks.png] [--seed=0]

The photographs are scikit-learn's two sample images, at 224x224 in 14x14 patches as the papers have them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from PIL import Image

from mim_jax.cli import run_main
from mim_jax.errors import ConfigError
from mim_jax.layers.patches import patchify, unpatchify
from mim_jax.masking.color_noise import color_noise, noise_mask
from mim_jax.masking.degradation import Downsampling, GaussianBlur, GaussianNoise
from mim_jax.masking.disjoint_cells import DisjointCellSampler
from mim_jax.masking.frequency import FrequencyFilter
from mim_jax.masking.hard import hard_mask
from mim_jax.masking.mixed import random_owners
from mim_jax.masking.multiblock import MultiBlockSampler
from mim_jax.masking.progressive import Curriculum, TokenSelector
from mim_jax.masking.random import random_cell_mask, random_mask

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE, PATCH = 224, (16, 16)
GRID = (SIZE // PATCH[0], SIZE // PATCH[1])
NUM_PATCHES = GRID[0] * GRID[1]
GREY = 0.45
COLUMNS = 6
Picture = np.ndarray  # [H, W, 3] in [0, 1]


def photographs() -> np.ndarray:
    """The central squares of both photographs, `[2, 224, 224, 3]` in [0, 1]."""
    from sklearn.datasets import load_sample_images

    squares = []
    for pixels in load_sample_images().images:
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        image = Image.fromarray(pixels[top : top + side, left : left + side]).resize((SIZE, SIZE), Image.BICUBIC)
        squares.append(np.asarray(image, np.float32) / 255)
    return np.stack(squares)


def with_hidden(photo: Picture, hidden: jax.Array) -> Picture:
    """The photograph with its `hidden` patches `[N]` (bool) in grey."""
    patches = patchify(jnp.asarray(photo)[None], PATCH)
    patches = jnp.where(hidden[None, :, None], jnp.full((), GREY, jnp.float32), patches)
    return np.asarray(unpatchify(patches, PATCH, GRID)[0])


def only(photo: Picture, ids: jax.Array) -> Picture:
    """The photograph with nothing but the patches `ids [K]`."""
    return with_hidden(photo, jnp.ones((NUM_PATCHES,), bool).at[ids].set(False))


def random_masks(photos: np.ndarray, rng: jax.Array) -> dict[str, Picture]:
    """Uniformly random patches and cells of them, and coloured noise."""
    keep = NUM_PATCHES // 4
    pictures = {
        "MAE: random 75 %": with_hidden(photos[0], random_mask(rng, 1, NUM_PATCHES, 0.75).mask[0]),
        "CropMAE: random 98.5 %": with_hidden(photos[0], random_mask(rng, 1, NUM_PATCHES, 0.985).mask[0]),
        "SimMIM: cells of 2x2, 60 %": with_hidden(photos[0], random_cell_mask(rng, 1, GRID, (2, 2), 0.6).mask[0]),
    }
    for color in ("red", "green", "blue", "purple"):
        noise = color_noise(rng, 1, GRID, color, sigma=1.5, band=(0.5, 2.0), field=64)
        pictures[f"ColorMAE: {color} noise"] = with_hidden(photos[0], noise_mask(noise, keep).mask[0])
    return pictures


def block_masks(photos: np.ndarray, rng: jax.Array) -> dict[str, Picture]:
    """I-JEPA's context and target blocks, and the two disjoint views of DMJD."""
    blocks = MultiBlockSampler(grid=GRID)(rng, 1)
    views = DisjointCellSampler(grid=GRID)(rng, 1)
    return {
        "I-JEPA: context": only(photos[0], blocks.context[0][0]),
        "I-JEPA: four targets": only(photos[0], jnp.concatenate([ids[0] for ids in blocks.targets])),
        "DMJD: view 1": with_hidden(photos[0], views.first.mask[0]),
        "DMJD: view 2": with_hidden(photos[0], views.second.mask[0]),
    }


def guided_masks(photos: np.ndarray, rng: jax.Array) -> dict[str, Picture]:
    """HPM's hard patches and SelectiveMAE's near, far and random tokens.

    A patch's contrast stands for the loss that HPM's teacher predicts, its mean colour and position for an embedding.
    """
    patches = patchify(jnp.asarray(photos[:1]), PATCH)
    contrast = patches.std(axis=-1)
    keep = NUM_PATCHES // 4
    hard = hard_mask(rng, contrast, (NUM_PATCHES - keep) // 2, keep)
    pictures = {"HPM: the hardest half, by contrast": with_hidden(photos[0], hard.mask[0])}
    places = jnp.stack(jnp.meshgrid(*(jnp.linspace(-1, 1, n) for n in GRID), indexing="ij"), axis=-1)
    colours = patches.reshape(1, NUM_PATCHES, -1, 3).mean(axis=2) - patches.mean()
    tokens = jnp.concatenate([4 * colours, places.reshape(1, NUM_PATCHES, 2)], axis=-1)
    selector = TokenSelector(NUM_PATCHES, curriculum=Curriculum(epochs=None))
    for name, epoch in (("near", 0), ("far", 400), ("random", 700)):
        selected = selector(rng, jnp.zeros((1, NUM_PATCHES), jnp.float32), tokens, epoch)
        pictures[f"SelectiveMAE: {name}, 15 %"] = only(photos[0], selected.visible[0])
    return pictures


def other_inputs(photos: np.ndarray, rng: jax.Array) -> dict[str, Picture]:
    """What is not hidden by patches: mixtures, frequencies and degradations."""
    owners = random_owners(rng, 1, NUM_PATCHES, 2)[0]
    other = patchify(jnp.asarray(photos[1:]), PATCH)
    mixed = jnp.where((owners == 0)[None, :, None], patchify(jnp.asarray(photos[:1]), PATCH), other)
    pictures = {"MixedAE: two images": np.asarray(unpatchify(mixed, PATCH, GRID)[0])}
    size = (SIZE, SIZE)
    degradations = {
        "MFM: low frequencies": FrequencyFilter(size, low_pass_probability=1.0),
        "MFM: high frequencies": FrequencyFilter(size, low_pass_probability=0.0),
        "MFM: super-resolution": Downsampling(size),
        "MFM: deblurring": GaussianBlur(size),
        "MFM: denoising": GaussianNoise((*size, 3)),
    }
    for name, degrade in degradations.items():
        pictures[name] = np.asarray(degrade(jnp.asarray(photos[:1]), degrade.draw(rng, 1))[0])
    return pictures


def gallery(seed: int) -> dict[str, Picture]:
    """All pictures by title, the photograph first."""
    photos = photographs()
    pictures = {"the photograph": photos[0]}
    parts: tuple[Callable[[np.ndarray, jax.Array], dict[str, Picture]], ...]
    parts = (random_masks, block_masks, guided_masks, other_inputs)
    for number, part in enumerate(parts):
        pictures |= part(photos, jax.random.fold_in(jax.random.key(seed), number))
    return pictures


def draw(pictures: dict[str, Picture], out: pathlib.Path) -> None:
    """Lays the pictures out in rows of `COLUMNS`."""
    rows = -(-len(pictures) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.2 * COLUMNS, 2.4 * rows), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(np.clip(picture, 0, 1))
        axis.set_title(title, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)
    plt.close(figure)


def define_flags() -> None:
    """Defines the command line's flags."""
    flags.DEFINE_string("out", "docs/images/masks.png", "Where the figure goes.")
    flags.DEFINE_integer("seed", 0, "Of everything random.")


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Draws the gallery."""
    if config_path or overrides:
        raise ConfigError("The gallery takes no config.")
    out = pathlib.Path(flags.FLAGS.out)
    draw(gallery(flags.FLAGS.seed), out)
    print(out)


if __name__ == "__main__":
    define_flags()
    run_main(main)
