"""What convolutional encoders of several stages have in common."""

from __future__ import annotations

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.compute import Compute
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.sites import EXECUTIONS, Features, Sites, sites_of
from mim_jax.models.encoder import Encoder
from mim_jax.models.layer_groups import count_layers


class ConvEncoder(Encoder, nn.Module):
    """Sizes and outputs of an encoder whose tokens are the positions of its last stage's map.

    Every stage but the first halves the map.
    """

    image_size: tuple[int, int]
    depths: tuple[int, ...]  # blocks of each stage
    widths: tuple[int, ...]  # of each stage
    drop_path: float = 0.0  # of the last block; rates grow linearly over all blocks
    sparse: str = "gathered"  # how hidden cells are left out, see `sites_of`; the numbers are the same
    compute: Compute = Compute()

    @property
    def stem_stride(self) -> int:
        """Pixels of one position of the first stage's map, along either axis."""
        raise NotImplementedError

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each stage's map."""
        return self.widths

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of one position of each stage's map, along either axis."""
        return tuple(self.stem_stride * 2**stage for stage in range(len(self.depths)))

    @property
    def width(self) -> int:
        """Of the tokens."""
        return self.stage_widths[-1]

    @property
    def patch_size(self) -> tuple[int, int]:
        """Pixels of a token: the total stride."""
        return (self.strides[-1], self.strides[-1])

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Neighbouring blocks of each stage that layer-wise learning rate decay counts as one layer."""
        raise NotImplementedError

    @property
    def block_layers(self) -> list[tuple[int, ...]]:
        """Of each stage the layers of its blocks, from 1; layer 0 is the stem."""
        return count_layers(self.depths, self.group_sizes)

    @property
    def num_layers(self) -> int:
        """Layers of blocks."""
        return self.block_layers[-1][-1]

    def rule(self, images: jax.Array, active: jax.Array | None, num_active: int | None) -> Sites:
        """What happens at the hidden sites of `images [B, H, W, C]`; raises ValueError for a mask of another grid."""
        grid = tuple(n // stride for n, stride in zip(images.shape[1:3], self.patch_size, strict=True))
        if active is not None and active.shape != (images.shape[0], *grid):
            raise ValueError(f"The mask of active cells is {active.shape}; give {(images.shape[0], *grid)}.")
        return sites_of(active, num_active, self.sparse)

    def drop_rates(self) -> list[tuple[float, ...]]:
        """Drop-path rates of every stage's blocks."""
        last, starts = max(sum(self.depths) - 1, 1), [sum(self.depths[:stage]) for stage in range(len(self.depths))]
        rates = [self.drop_path * block / last for block in range(sum(self.depths))]
        return [tuple(rates[start : start + depth]) for start, depth in zip(starts, self.depths, strict=True)]


def maps_of(stages: list[Features], sites: Sites) -> list[jax.Array]:
    """Every stage's map, `[B, H / stride, W / stride, C]`."""
    return [split_over_batch(sites.leave(x)) for x in stages]


def tokens_of(x: Features, sites: Sites) -> jax.Array:
    """The positions of a map in raster order, `[B, N, C]`."""
    maps = sites.leave(x)
    return split_over_batch(maps.reshape(maps.shape[0], -1, maps.shape[-1]))


def check_model(model: ConfigDict) -> None:
    """Raises ConfigError for impossible stages or an unknown choice in the `model` section of such an encoder."""
    for key in ("depths", "widths"):
        if not model[key] or min(model[key]) < 1:
            raise ConfigError(f"model.{key} is {tuple(model[key])}; give a positive number for each stage.")
    if len(model.depths) != len(model.widths):
        raise ConfigError(
            f"model.depths has {len(model.depths)} stages and model.widths {len(model.widths)}; change one of the two."
        )
    if not 0.0 <= model.drop_path < 1.0:
        raise ConfigError(f"model.drop_path is {model.drop_path}; it must lie in [0, 1).")
    if model.pool != "mean":
        raise ConfigError(f"model.pool is {model.pool!r}; model.backbone {model.backbone!r} has no other than 'mean'.")
    if model.sparse not in EXECUTIONS:
        raise ConfigError(f"model.sparse is {model.sparse!r}; choose one of {', '.join(EXECUTIONS)}.")


def check_image_size(encoder: ConvEncoder) -> None:
    """Raises ConfigError where the total stride does not divide the images."""
    (height, width), (ph, pw) = encoder.image_size, encoder.patch_size
    if min(height, width) < 1 or height % ph or width % pw:
        raise ConfigError(
            f"image_size {height}x{width} is not divisible by {ph}, the total stride of the {len(encoder.depths)} "
            "stages; change it, the stem, or the number of model.depths."
        )
