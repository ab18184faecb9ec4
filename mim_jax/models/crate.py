"""CRATE's encoder: layers that compress, then sparsify (Yu et al. 2023, arXiv 2306.01129; Pai et al. 2024).

Official code: Ma-Lab-Berkeley/CRATE, `model/crate_ae` (the masked autoencoder's, with other constants than the
supervised model's).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.ista import ISTA
from mim_jax.layers.patches import PatchEmbed, as_pair, patch_grid, patchify
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.position import PositionTable
from mim_jax.layers.stack import stack_blocks
from mim_jax.layers.subspace_attention import SubspaceAttention
from mim_jax.models.encoder import PatchEncoder
from mim_jax.models.vit import check_heads, check_image_size

EPSILON = 1e-5  # of the norms inside blocks; the final norms have a ViT's
_SCHEME = "xavier"
_SIZES = {"Ti": (384, 12, 6), "S": (576, 12, 12), "B": (768, 12, 12), "L": (1024, 24, 16)}


def crate_size(name: str) -> dict[str, int]:
    """`width`, `depth` and `heads` of a size of the official code: Ti, S, B or L. The decoder has the same.

    Raises:
      ConfigError: there is no such size.
    """
    if name not in _SIZES:
        raise ConfigError(f"There is no CRATE size {name!r}; choose one of {', '.join(_SIZES)}.")
    return dict(zip(("width", "depth", "heads"), _SIZES[name], strict=True))


def subspace_attention(heads: int, compute: Compute) -> SubspaceAttention:
    """The attention of encoder and decoder blocks, as the submodule "attention"."""
    kernel_init = find_scheme(_SCHEME).kernel
    return SubspaceAttention(heads, compute.attention_kernel, compute.jax_dtype, kernel_init, name="attention")


class CrateBlock(nn.Module):
    """`x += MSSA(norm(x)); x = ISTA(norm(x))`. What comes out is non-negative, about half of it zero at first."""

    heads: int
    step_size: float = 0.1
    threshold: float = 0.5
    stochastic: bool = False  # whether drop path is active
    collect: bool = False  # whether a scan over blocks keeps this one's output
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Maps `x [B, T, D]`; returns it to go on with, and again for a scan to collect if `collect` (else None)."""
        x = split_over_batch(x)
        branch = subspace_attention(self.heads, self.compute)(layer_norm(self.compute, "norm1", EPSILON)(x))
        if self.stochastic:
            branch = drop_path(branch, drop_rate, self.make_rng("drop_path"))
        compressed = layer_norm(self.compute, "norm2", EPSILON)(x + branch)
        x = split_over_batch(ISTA(self.step_size, self.threshold, self.compute.jax_dtype, name="ista")(compressed))
        return x, x if self.collect else None


class CrateStack(nn.Module):
    """`depth` encoder blocks whose parameters are stacked on a leading layer axis, under `blocks`."""

    depth: int
    heads: int
    step_size: float = 0.1
    threshold: float = 0.5
    drop_path: float = 0.0  # of the last block; rates grow linearly
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, deterministic: bool = True, return_layers: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """The last block's output for `x [B, T, D]`, and every block's `[depth, B, T, D]` if `return_layers`."""
        blocks = stack_blocks(CrateBlock, self.depth, self.compute, (0,))(
            heads=self.heads,
            step_size=self.step_size,
            threshold=self.threshold,
            stochastic=self.drop_path > 0.0 and not deterministic,
            collect=return_layers,
            compute=self.compute,
            name="blocks",
        )
        rates = jnp.linspace(0.0, self.drop_path, self.depth, dtype=jnp.float32)
        return blocks(x.astype(self.compute.jax_dtype), rates)


class Crate(PatchEncoder, nn.Module):
    """The white-box encoder. It always processes all tokens, so that masking saves nothing.

    Mask tokens take the place of hidden patches before the fixed positions are added. For layer-wise decay the
    embedding and the tokens are layer 0 and block `i` (from 0) is layer `i + 1`, as in a ViT.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    depth: int
    heads: int
    step_size: float = 0.1
    threshold: float = 0.5
    class_token: bool = True
    mask_token: bool = False
    drop_path: float = 0.0  # of the attention; a sparsifying step has no branch to drop
    final_norm: bool = True
    pool: str = "mean"  # what `split` calls "pooled": the "class" token or the "mean" over patches
    compute: Compute = Compute()

    @property
    def norm_epsilon(self) -> float:
        """Of the final norm."""
        return 1e-6

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        hidden: jax.Array | None = None,
        deterministic: bool = True,
        return_layers: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Encodes `images [B, H, W, C]`.

        Args:
          images: normalised pixels.
          hidden: `[B, N]` bool; embeddings of these patches are replaced by the mask token (needs `mask_token=True`).
          deterministic: no drop path; otherwise the rng stream "drop_path" is needed.
          return_layers: also return the output of every block.

        Returns:
          Tokens `[B, (1 +) N, D]` after the final norm, the class token first where there is one; with `return_layers`
          also `[depth, B, (1 +) N, D]`, before the final norm.
        """
        check_image_size(images.shape[1:3], self.image_size)
        x = PatchEmbed(self.width, _SCHEME, self.compute, name="patch_embed")(patchify(images, self.patch_size))
        if self.mask_token:
            token = self._token("mask_token", x)
            x = x if hidden is None else jnp.where(hidden[:, :, None], token, x)
        table, _ = PositionTable(self.grid, self.width, name="position")()
        x = x + table[None].astype(x.dtype)
        if self.class_token:  # its position is zero
            token = jnp.broadcast_to(self._token("class_token", x), (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        x, layers = CrateStack(
            self.depth, self.heads, self.step_size, self.threshold, self.drop_path, self.compute, name="stack"
        )(x, deterministic=deterministic, return_layers=return_layers)
        if self.final_norm:
            x = split_over_batch(layer_norm(self.compute, "norm", self.norm_epsilon)(x))
        return (x, layers) if return_layers else x

    def _token(self, name: str, x: jax.Array) -> jax.Array:
        return self.param(name, find_scheme(_SCHEME).token, (self.width,), jnp.float32).astype(x.dtype)[None, None]


def default_config() -> ConfigDict:
    """The `model` section of a CRATE-B/16.

    What features of it the published probes read is not known; `pool` may also be "class".
    """
    return ConfigDict(
        dict(
            backbone="crate",
            patch_size=16,
            **crate_size("B"),
            # Of the sparsifying step: eta and lambda. Supervised CRATE has lambda = 0.1.
            step_size=0.1,
            threshold=0.5,
            class_token=True,
            pool="mean",
            drop_path=0.0,
        )
    )


def build(config: ConfigDict, *, mask_token: bool = False, final_norm: bool = True) -> Crate:
    """The encoder a run's `config` asks for (`image_size`, `model`, `compute`).

    Raises:
      ConfigError: another `model.backbone`, sizes that do not divide, or an impossible value.
    """
    model = config.model
    if model.backbone != "crate":
        raise ConfigError(
            f"model.backbone is {model.backbone!r}, which {config.method or config.task} does not work with; set it to "
            "'crate'."
        )
    check_heads(model.width, model.heads, "model")
    if model.depth < 1:
        raise ConfigError(f"model.depth is {model.depth}; an encoder needs at least one block.")
    if model.width % 4:
        raise ConfigError(f"model.width is {model.width}; sin-cos positions need a multiple of 4.")
    for key in ("step_size", "threshold"):
        if model[key] < 0.0:
            raise ConfigError(f"model.{key} is {model[key]}; it must be 0 or more.")
    if model.pool not in ("class", "mean") or (model.pool == "class" and not model.class_token):
        raise ConfigError(f"model.pool is {model.pool!r}; choose 'mean', or 'class' with model.class_token=True.")
    if not 0.0 <= model.drop_path < 1.0:
        raise ConfigError(f"model.drop_path is {model.drop_path}; it must lie in [0, 1).")
    encoder = Crate(
        image_size=as_pair(config.image_size),
        patch_size=as_pair(model.patch_size),
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        step_size=model.step_size,
        threshold=model.threshold,
        class_token=model.class_token,
        mask_token=mask_token,
        drop_path=model.drop_path,
        final_norm=final_norm,
        pool=model.pool,
        compute=Compute.from_config(config.compute),
    )
    patch_grid(encoder.image_size, encoder.patch_size)
    return encoder


def build_supervised(config: ConfigDict) -> tuple[Crate, bool]:
    """The encoder without a final norm where features are averaged, and whether a norm follows the average instead."""
    averaged = config.model.pool == "mean"
    return build(config, final_norm=not averaged), averaged
