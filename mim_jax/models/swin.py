"""Swin Transformers: hierarchical encoders with shifted windows (Liu et al. 2021, arXiv 2103.14030)."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.block import layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.dense import Dense
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.patches import as_pair, patch_grid, patchify
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.window_attention import EPSILON, INIT_SCHEME, WindowStack
from mim_jax.models.encoder import Encoder
from mim_jax.models.layer_groups import count_layers
from mim_jax.models.vit import check_heads, check_image_size

_SIZES = {
    "T": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def swin_size(name: str) -> dict[str, int | tuple[int, ...]]:
    """`width`, `depths` and `heads` of a standard size: T, S, B or L.

    Raises:
      ConfigError: there is no such size.
    """
    if name not in _SIZES:
        raise ConfigError(f"There is no Swin size {name!r}; choose one of {', '.join(_SIZES)}.")
    return dict(zip(("width", "depths", "heads"), _SIZES[name], strict=True))


class NormedPatchEmbed(nn.Module):
    """The patch embedding and the norm that follows it."""

    width: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        """Maps `[B, N, p*p*C]` to `[B, N, width]`."""
        scheme = find_scheme(INIT_SCHEME)
        x = Dense(
            self.width,
            dtype=self.compute.jax_dtype,
            kernel_init=scheme.patch_kernel,
            bias_init=scheme.patch_bias(patches.shape[-1]),
            name="projection",
        )(patches)
        return layer_norm(self.compute, "norm", EPSILON)(x)


class PatchMerging(nn.Module):
    """Two by two tokens become one of twice their width; a map of odd length is first padded with zeros."""

    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, D]` to `[B, ceil(H / 2), ceil(W / 2), 2 D]`."""
        batch, height, width, features = x.shape
        if height % 2 or width % 2:
            x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        # The official order: (even row, even column), (odd, even), (even, odd), (odd, odd).
        x = x.reshape(batch, rows, 2, columns, 2, features).transpose(0, 1, 3, 4, 2, 5)
        x = layer_norm(self.compute, "norm", EPSILON)(x.reshape(batch, rows, columns, 4 * features))
        return Dense(
            2 * features,
            use_bias=False,
            dtype=self.compute.jax_dtype,
            kernel_init=find_scheme(INIT_SCHEME).kernel,
            name="reduction",
        )(x)


class SwinStage(nn.Module):
    """Blocks at one resolution, and but in the last stage the merging that leads to the next."""

    window: int
    heads: int
    mlp_ratio: float
    drop_rates: tuple[float, ...]  # of every block
    merges: bool
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """The map `[B, H, W, D]` after the blocks, and what the next stage reads."""
        mlp_hidden = int(x.shape[-1] * self.mlp_ratio)
        stack = WindowStack(self.window, self.heads, mlp_hidden, self.drop_rates, self.compute, name="stack")
        x = stack(x, deterministic=deterministic)
        return x, PatchMerging(self.compute, name="merge")(x) if self.merges else x


class Swin(Encoder, nn.Module):
    """A Swin Transformer. It has no class token and no absolute positions.

    Its output is coarser than what it embeds: each stage but the last halves the map, so that with four of them tokens
    of 4x4 pixels leave as tokens of 32x32. Images whose sides these do not divide are padded within the stages.

    Parameters: `patch_embed`, `mask_token`, `stage<s>/stack/blocks/{even,odd}` with the pair's number as leading axis,
    `stage<s>/merge`, `norm`. For layer-wise decay the official code counts blocks over all stages: the embedding and
    the mask token are layer 0, block i (from 0) is layer i + 1, the merging of a stage is of its last block's layer,
    and the final norm comes after all blocks.
    """

    image_size: tuple[int, int]
    embed_size: tuple[int, int]  # pixels of a patch: of the tokens a mask token may replace
    embed_width: int  # of the first stage; every other one is twice as wide as the one before
    depths: tuple[int, ...]  # blocks of each stage
    heads: tuple[int, ...]
    window: int = 7  # tokens along a side; smaller where the map is
    mlp_ratio: float = 4.0
    mask_token: bool = False
    drop_path: float = 0.0  # of the last block; rates grow linearly over all stages
    final_norm: bool = True
    compute: Compute = Compute()

    @property
    def norm_epsilon(self) -> float:
        """Of all norms."""
        return EPSILON

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def width(self) -> int:
        """Of the output's tokens."""
        return self.embed_width * self._stride

    @property
    def embed_grid(self) -> tuple[int, int]:
        """Patches `(rows, columns)`: the tokens a mask token may replace."""
        return patch_grid(self.image_size, self.embed_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Pixels of an output token."""
        return self.embed_size[0] * self._stride, self.embed_size[1] * self._stride

    @property
    def grid(self) -> tuple[int, int]:
        """Output tokens `(rows, columns)`, counting those that reach beyond the image's border."""
        rows, columns = self.embed_grid
        return -(-rows // self._stride), -(-columns // self._stride)

    @property
    def num_layers(self) -> int:
        """Layers that layer-wise learning rate decay counts, without the embedding: the blocks."""
        return self.depth

    def layer_ids(self, name: str) -> int | tuple[int, ...]:
        """The layer of the parameter `name` (without "encoder/"), or those of every pair of a stacked one."""
        if name.startswith(("patch_embed/", "mask_token")):
            return 0
        layers = count_layers(self.depths, (1,) * len(self.depths))
        if found := re.match(r"stage(\d+)/stack/blocks/(even|odd)/", name):
            return layers[int(found[1]) - 1][0 if found[2] == "even" else 1 :: 2]
        if found := re.match(r"stage(\d+)/merge/", name):
            return layers[int(found[1]) - 1][-1]
        return self.num_layers + 1

    @property
    def _stride(self) -> int:
        return 2 ** (len(self.depths) - 1)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        hidden: jax.Array | None = None,
        deterministic: bool = True,
        return_stages: bool = False,
    ) -> jax.Array | list[jax.Array]:
        """Encodes `images [B, H, W, C]`.

        Args:
          images: normalised pixels.
          hidden: `[B, M]` bool over `embed_grid`; embeddings of these patches, after their norm, are replaced by the
            mask token (needs `mask_token=True`).
          deterministic: no drop path; otherwise the rng stream "drop_path" is needed.
          return_stages: return every stage's map `[B, H_s, W_s, D_s]` before merging, without the final norm, instead.

        Returns:
          Tokens `[B, N, D]` in raster order after the final norm.
        """
        check_image_size(images.shape[1:3], self.image_size)
        x = NormedPatchEmbed(self.embed_width, self.compute, name="patch_embed")(patchify(images, self.embed_size))
        x = self._substitute(x, hidden).reshape(-1, *self.embed_grid, self.embed_width)
        rates, maps = np.linspace(0.0, self.drop_path, self.depth).tolist(), []
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True), 1):
            own, rates = rates[:depth], rates[depth:]
            last = stage == len(self.depths)
            before, x = SwinStage(
                self.window, heads, self.mlp_ratio, tuple(own), not last, self.compute, name=f"stage{stage}"
            )(x, deterministic=deterministic)
            maps.append(before)
        if return_stages:
            return maps
        x = x.reshape(x.shape[0], self.num_patches, self.width)
        return split_over_batch(layer_norm(self.compute, "norm", EPSILON)(x)) if self.final_norm else x

    def _substitute(self, x: jax.Array, hidden: jax.Array | None) -> jax.Array:
        if not self.mask_token:
            return x
        token = self.param("mask_token", find_scheme(INIT_SCHEME).token, (self.embed_width,), jnp.float32)
        return x if hidden is None else jnp.where(hidden[:, :, None], token.astype(x.dtype)[None, None], x)


def default_config() -> ConfigDict:
    """The `model` section of a Swin-B."""
    return ConfigDict(
        dict(
            backbone="swin",
            patch_size=4,  # of the embedding
            **swin_size("B"),  # `width` of the first stage, `depths` and `heads` of all
            window=7,
            mlp_ratio=4.0,
            pool="mean",
            drop_path=0.0,
        )
    )


def build(config: ConfigDict, *, mask_token: bool = False, final_norm: bool = True) -> Swin:
    """The encoder a run's `config` asks for (`image_size`, `model`, `compute`).

    Raises:
      ConfigError: sizes that do not divide or do not go together.
    """
    model = config.model
    if not model.depths or any(depth < 2 or depth % 2 for depth in model.depths):
        raise ConfigError(
            f"model.depths is {tuple(model.depths)}; blocks come in pairs, so give an even number for every stage."
        )
    if len(model.heads) != len(model.depths):
        raise ConfigError(
            f"model.heads has {len(model.heads)} numbers and model.depths {len(model.depths)}; give one a stage."
        )
    for stage, heads in enumerate(model.heads):
        check_heads(model.width * 2**stage, heads, "model")
    if model.window < 1:
        raise ConfigError(f"model.window is {model.window}; a window needs at least one token.")
    if model.pool != "mean":
        raise ConfigError(f"model.pool is {model.pool!r}; model.backbone 'swin' has no class token, choose 'mean'.")
    if not 0.0 <= model.drop_path < 1.0:
        raise ConfigError(f"model.drop_path is {model.drop_path}; it must lie in [0, 1).")
    patch_grid(as_pair(config.image_size), as_pair(model.patch_size))
    return Swin(
        image_size=as_pair(config.image_size),
        embed_size=as_pair(model.patch_size),
        embed_width=model.width,
        depths=tuple(model.depths),
        heads=tuple(model.heads),
        window=model.window,
        mlp_ratio=model.mlp_ratio,
        mask_token=mask_token,
        drop_path=model.drop_path,
        final_norm=final_norm,
        compute=Compute.from_config(config.compute),
    )
