"""The hybrid encoder of ConvMAE: two stages of masked convolutions, then a ViT (Gao et al. 2022, arXiv 2205.03892)."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.block import BlockStack, gelu, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import Initializer, find_scheme, torch_default_bias, torch_default_kernel
from mim_jax.layers.masked_conv import EPSILON, MaskedConvStage, pointwise
from mim_jax.layers.patches import patchify
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.position import PositionTable
from mim_jax.masking.token_mask import take_tokens
from mim_jax.masking.visible import Visible
from mim_jax.models import vit
from mim_jax.models.encoder import Encoder

_SIZES = {"S": (384, 11, 6, (128, 256)), "B": (768, 11, 12, (256, 384)), "L": (1024, 23, 16, (384, 768))}
_SIDES = (4, 2)  # positions of a patch along each axis in the two stages: strides 4 and 8 for patches of 16


class ConvEmbed(nn.Module):
    """A convolution of stride and size `p`, a norm and a GELU; unlike a ViT's patch embedding it is no linear map."""

    width: int
    kernel_init: Initializer = torch_default_kernel
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, windows: jax.Array) -> jax.Array:
        """Maps flattened windows `[..., p*p*C]` to `[..., width]`."""
        x = nn.Dense(
            self.width,
            dtype=self.compute.jax_dtype,
            kernel_init=self.kernel_init,
            bias_init=torch_default_bias(windows.shape[-1]),
            name="projection",
        )(windows)
        return gelu(layer_norm(self.compute, "norm", EPSILON)(x))


class ConvStem(nn.Module):
    """From patches of pixels to one token for each, by two stages of masked convolutions at 4x4 and 2x2 positions."""

    grid: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    widths: tuple[int, int] = (256, 384)
    depths: tuple[int, int] = (2, 2)
    mlp_ratios: tuple[float, float] = (4.0, 4.0)
    drop_rates: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # of every block, in order
    fusion: bool = True
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, patches: jax.Array, visible: Visible | None = None, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array | None]:
        """Embeds `patches [B, K, p*p*C]`, of pixels in raster order.

        Args:
          patches: the patches to embed: the visible ones, or without `visible` all of them in raster order.
          visible: where they are.
          deterministic: no drop path.

        Returns:
          Tokens `[B, K, width]`, and with `fusion` the sum of the stages' side outputs, of the same shape.
        """
        kernel_init = find_scheme(self.init_scheme).kernel
        x, size, fused = patches, self.patch_size, None
        for stage, side in enumerate(_SIDES):
            window = (size[0] // side, size[1] // side)
            x = ConvEmbed(self.widths[stage], compute=self.compute, name=f"embed{stage + 1}")(
                windows_of(x, size, window)
            )
            first = sum(self.depths[:stage])
            rates = self.drop_rates[first : first + self.depths[stage]]
            x = MaskedConvStage(
                self.depths[stage],
                self.grid,
                side,
                int(self.widths[stage] * self.mlp_ratios[stage]),
                (rates[0], rates[-1]),
                self.compute,
                name=f"stage{stage + 1}",
            )(x, visible, deterministic=deterministic)
            # All positions of a patch in one row, (row, column, channel): what a convolution of the patch's size reads.
            x, size = x.reshape(*x.shape[:2], -1), (side, side)
            if self.fusion:
                side_output = pointwise(self.compute, self.width, x.shape[-1], f"fuse{stage + 1}")(x)
                fused = side_output if fused is None else fused + side_output
        x = ConvEmbed(self.width, kernel_init, self.compute, name="embed3")(x)
        return nn.Dense(self.width, dtype=self.compute.jax_dtype, kernel_init=kernel_init, name="embed4")(x), fused


def windows_of(patches: jax.Array, size: tuple[int, int], window: tuple[int, int]) -> jax.Array:
    """Cuts patches `[B, K, h*w*C]` of `size (h, w)` positions into windows: `[B, K, number, wh*ww*C]`."""
    batch, count, length = patches.shape
    maps = patches.reshape(batch * count, *size, length // math.prod(size))
    windows = patchify(maps, window)
    return windows.reshape(batch, count, *windows.shape[1:])


class ConvViT(Encoder, nn.Module):
    """The hybrid encoder. It has no class token.

    Hidden patches are dropped before the first product: the stages compute visible patches alone (see
    `mim_jax.layers.masked_conv`), and so does the ViT. With `fusion` the stages' outputs are added, each projected by a
    convolution over whole patches, to that of the last block, before the final norm; the official downstream models do
    without.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    depth: int  # blocks of the ViT
    heads: int
    mlp_ratio: float = 4.0
    widths: tuple[int, int] = (256, 384)  # of the two convolutional stages
    depths: tuple[int, int] = (2, 2)
    mlp_ratios: tuple[float, float] = (4.0, 4.0)
    fusion: bool = True
    position: str = "sincos"
    qkv_bias: str = "all"
    layer_scale: float | None = None  # in the ViT's blocks
    drop_path: float = 0.0  # of the last block; rates grow linearly over all three stages
    final_norm: bool = True
    init_scheme: str = "xavier"  # but convolutions keep PyTorch's default, as in the official code
    compute: Compute = Compute()

    @property
    def norm_epsilon(self) -> float:
        """Of the norms of its transformer blocks."""
        return 1e-6

    @nn.compact
    def __call__(
        self, images: jax.Array, *, ids_keep: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """Encodes `images [B, H, W, C]`.

        Args:
          images: normalised pixels.
          ids_keep: `[B, K]` patches to encode, in this order, each once; or `[B * V, K]`, V views of each image.
          deterministic: no drop path; otherwise the rng stream "drop_path" is needed.

        Returns:
          Tokens `[B (* V), K, D]` after the final norm.
        """
        num_convs = sum(self.depths)
        rates = [self.drop_path * block / (num_convs + self.depth - 1) for block in range(num_convs + 1)]
        patches, visible = patchify(images, self.patch_size), None
        if ids_keep is not None:
            patches, visible = take_tokens(patches, ids_keep), Visible.from_ids(ids_keep, self.num_patches)
        x, fused = ConvStem(
            self.grid,
            self.patch_size,
            self.width,
            self.widths,
            self.depths,
            self.mlp_ratios,
            tuple(rates[:num_convs]),
            self.fusion,
            self.init_scheme,
            self.compute,
            name="stem",
        )(patches, visible, deterministic=deterministic)
        table, _ = PositionTable(self.grid, self.width, self.position, name="position")()
        if table is not None:
            x = x + (table[None] if ids_keep is None else table[ids_keep]).astype(x.dtype)
        x, _ = BlockStack(
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio + 0.5),
            self.qkv_bias,
            self.layer_scale,
            self.drop_path,
            self.init_scheme,
            self.compute,
            rates[num_convs],
            name="stack",
        )(x, deterministic=deterministic)
        if fused is not None:
            x = x + fused
        return split_over_batch(layer_norm(self.compute, "norm")(x)) if self.final_norm else x


def conv_vit_size(name: str) -> dict[str, Any]:
    """What a `model` section of size S, B or L has: `width`, `depth` and `heads` of the ViT, `stages` before it.

    The official code has B alone. L is the one that DMJD builds; S is the paper's as it is commonly told, unconfirmed.

    Raises:
      ConfigError: there is no such size.
    """
    if name not in _SIZES:
        raise ConfigError(f"There is no ConvViT size {name!r}; choose one of {', '.join(_SIZES)}.")
    width, depth, heads, widths = _SIZES[name]
    return dict(width=width, depth=depth, heads=heads, stages=dict(widths=widths, depths=(2, 2)))


def stage_config(mlp_ratio: float = 4.0) -> ConfigDict:
    """The `model.stages` section: the convolutional stages of the Base size."""
    return ConfigDict(dict(widths=(256, 384), depths=(2, 2), mlp_ratios=(mlp_ratio, mlp_ratio)))


def default_config() -> ConfigDict:
    """The `model` section of the Base size."""
    model = vit.default_config()
    model.update(backbone="conv_vit", depth=11, class_token=False, pool="mean")
    model.stages = stage_config()
    return model


def build(config: ConfigDict, *, final_norm: bool = True, fusion: bool = True) -> ConvViT:
    """The encoder a run's `config` asks for (`image_size`, `model` with its `stages`, `compute`).

    Raises:
      ConfigError: sizes that do not divide, or something a ViT has and this encoder has not.
    """
    plain = vit.build(config, final_norm=final_norm, backbone="conv_vit")  # checks what the two have in common
    model, stages = config.model, config.model.stages
    if model.class_token or model.relative_bias:
        key = "class_token" if model.class_token else "relative_bias"
        raise ConfigError(f"model.{key} is True, which model.backbone 'conv_vit' does not have; set it to False.")
    for key, value in vit.ENCODER_VARIANTS.items():
        if model[key] != value:
            raise ConfigError(f"model.{key} is {model[key]!r}; model.backbone 'conv_vit' works with {value!r} only.")
    for key in ("widths", "depths", "mlp_ratios"):
        if len(stages[key]) != len(_SIDES) or min(stages[key]) <= 0:
            raise ConfigError(f"model.stages.{key} is {tuple(stages[key])}; give two positive numbers, one per stage.")
    if any(side % _SIDES[0] for side in plain.patch_size):
        ph, pw = plain.patch_size
        raise ConfigError(f"model.patch_size is {ph}x{pw}; model.backbone 'conv_vit' needs multiples of {_SIDES[0]}.")
    return ConvViT(
        image_size=plain.image_size,
        patch_size=plain.patch_size,
        width=plain.width,
        depth=plain.depth,
        heads=plain.heads,
        mlp_ratio=plain.mlp_ratio,
        widths=tuple(stages.widths),
        depths=tuple(stages.depths),
        mlp_ratios=tuple(stages.mlp_ratios),
        fusion=fusion,
        position=plain.position,
        qkv_bias=plain.qkv_bias,
        layer_scale=plain.layer_scale,
        drop_path=plain.drop_path,
        final_norm=final_norm,
        init_scheme=plain.init_scheme,
        compute=plain.compute,
    )


def build_supervised(config: ConfigDict) -> tuple[ConvViT, bool]:
    """The encoder without fusion and final norm, as the official downstream models are; a norm follows the average."""
    return build(config, final_norm=False, fusion=False), True
