"""ColorMAE: "ColorMAE: Exploring data-independent masking strategies in Masked AutoEncoders".

Hinojosa, Liu, Ghanem, ECCV 2024, arXiv 2407.13036.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.masking import color_noise
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models.masked_autoencoder import MaskedAutoencoder


class ColorMAE(MaskedAutoencoder):
    """MAE whose masks rank the patches by filtered noise instead of white noise; the images have no say in it.

    The patches of largest noise stay visible, the largest first, as in the official code (the paper's summaries hide
    them; for noise that is symmetric about zero the two have the same distribution). What the authors released is not
    their filters but four stacks of stored noise and a sampler that cuts windows from a stack; both ways are here:

    - a colour by name draws new noise for every image at every step. The authors' sigmas, their white noise (normal
      here) and their borders (none here: windows of periodic fields) are unknown. Nothing is stored.
    - the path of an npz of stored noise (`green_noise_data_3072.npz`) is sampled as the official code samples it.
      `noise.group` images share a crop and flips, and image i of a group always uses field i; only these are kept.

    The official model is mmpretrain's, which has the halves of the sin-cos tables exchanged. It also starts the biases
    of the MLPs at a standard deviation of 1e-6, which are zero here.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 and green noise, the paper's best."""
        config = super().default_config()
        config.model.position = "sincos_rows_first"
        config.noise = ConfigDict(
            dict(
                colors=("green",),  # one after another: white, red, green, blue, purple, or the path of stored noise
                epochs=(0,),  # in which each of them begins
                sigma=1.5,  # of the blur that makes red and blue noise, in patches
                band=(0.5, 2.0),  # of the two blurs that make green and purple noise
                field=64,  # side of the periodic field that windows are cut from, in patches
                group=optional(int, 512),  # images that share a window of stored noise: those of a device; None: none
            )
        )
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        noise = config.noise
        if not noise.colors or len(noise.colors) != len(noise.epochs) or noise.epochs[0] != 0:
            raise ConfigError(
                f"noise.colors {tuple(noise.colors)} and noise.epochs {tuple(noise.epochs)} must be equally long, "
                "and the first colour must begin in epoch 0."
            )
        if any(later <= earlier for earlier, later in zip(noise.epochs, noise.epochs[1:], strict=False)):
            raise ConfigError(f"noise.epochs is {tuple(noise.epochs)}; it must rise.")
        if noise.field < max(self.encoder.grid):
            raise ConfigError(f"noise.field is {noise.field}, less than a side of the grid {self.encoder.grid}.")
        if not (noise.sigma > 0.0 and len(noise.band) == 2 and 0.0 < noise.band[0] < noise.band[1]):
            raise ConfigError(
                f"noise.sigma is {noise.sigma} and noise.band {tuple(noise.band)}; they must be positive, and the band "
                "a pair with the smaller first."
            )
        if noise.group is not None and noise.group < 1:
            raise ConfigError(f"noise.group is {noise.group}; it must be at least 1, or None.")
        self.samplers = [self._sampler(color) for color in noise.colors]

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """Ranks each image's patches by noise of the epoch's colour; `mask_ratio` of them are hidden."""
        del variables
        size, epochs = batch["image"].shape[0], self.config.noise.epochs
        branches = [lambda rng, sample=sample: sample(rng, size) for sample in self.samplers]
        if len(branches) == 1:
            noise = branches[0](rng)
        else:
            begun = (jnp.asarray(clock.epoch, jnp.float32) >= jnp.asarray(epochs, jnp.float32)).sum(dtype=jnp.int32)
            noise = jax.lax.switch(begun - 1, branches, rng)
        return color_noise.noise_mask(noise, self.num_keep)

    def _sampler(self, color: str):
        """A function of an rng and the number of images to noise `[B, *grid]`."""
        noise, grid = self.config.noise, self.encoder.grid
        if color in color_noise.COLORS:
            return lambda rng, size: color_noise.color_noise(
                rng, size, grid, color, sigma=noise.sigma, band=tuple(noise.band), field=noise.field
            )
        if not color.endswith(".npz"):
            raise ConfigError(
                f"noise.colors has {color!r}; choose {', '.join(color_noise.COLORS)}, or give an .npz of stored noise."
            )
        stack = color_noise.load_stack(color, grid)
        # The official sampler never gets beyond the fields of one group, so that the rest need not be carried along.
        stack = stack if noise.group is None else stack[: noise.group]

        def sample(rng: jax.Array, size: int) -> jax.Array:
            windows = color_noise.draw_windows(rng, size, stack.shape, grid, noise.group)
            return color_noise.cut_windows(jnp.asarray(stack), windows, grid)

        return sample
