"""The Vision Transformer encoder (Dosovitskiy et al. 2021) in the variants masked image modelling needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import MLP_KINDS, AttentionEdit, BlockStack, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.patches import PatchEmbed, as_pair, patch_grid, patchify
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.position import POSITIONS, PositionTable, RelativeBias
from mim_jax.layers.rotary import Rotation, check_head_dim, grid_rotation
from mim_jax.masking.token_mask import take_tokens
from mim_jax.models.encoder import PatchEncoder

_SIZES = {
    "Ti": (192, 12, 3, 4.0),
    "S": (384, 12, 6, 4.0),
    "B": (768, 12, 12, 4.0),
    "L": (1024, 24, 16, 4.0),
    "H": (1280, 32, 16, 4.0),
    "g": (1408, 40, 16, 48 / 11),
}


# In what public encoders differ from those of this field, and what holds for these.
ENCODER_VARIANTS = dict(
    num_registers=0, pre_norm=False, activation="gelu", norm_epsilon=1e-6, patch_bias=True, class_position=True
)


def vit_size(name: str) -> dict[str, int | float]:
    """`width`, `depth`, `heads` and `mlp_ratio` of a standard size: Ti, S, B, L, H or g.

    Raises:
      ConfigError: there is no such size.
    """
    if name not in _SIZES:
        raise ConfigError(f"There is no ViT size {name!r}; choose one of {', '.join(_SIZES)}.")
    return dict(zip(("width", "depth", "heads", "mlp_ratio"), _SIZES[name], strict=True))


class ViT(PatchEncoder, nn.Module):
    """A ViT that can drop hidden tokens or replace them by a learned mask token."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    class_token: bool = True
    mask_token: bool = False
    position: str = "sincos"
    relative_bias: bool = False  # one table shared by all blocks (BEiT, SimMIM)
    qkv_bias: str = "all"
    layer_scale: float | None = None
    drop_path: float = 0.0
    final_norm: bool = True
    pool: str = "class"  # what `split` calls "pooled": the "class" token or the "mean" over patches
    init_scheme: str = "xavier"
    compute: Compute = Compute()
    # What public encoders have that others learn from (see `teachers.py`).
    num_registers: int = 0  # learned tokens without position that all tokens see
    pre_norm: bool = False  # a norm before the first block (CLIP)
    activation: str = "gelu"  # see `MLP`
    norm_epsilon: float = 1e-6
    patch_bias: bool = True
    class_position: bool = True  # whether a trained position table has a row for the class token

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        ids_keep: jax.Array | None = None,
        hidden: jax.Array | None = None,
        deterministic: bool = True,
        return_layers: bool = False,
        return_registers: bool = False,
        arrange: Callable[[jax.Array], jax.Array] | None = None,
        edit: AttentionEdit | None = None,
        num_keys: int | None = None,
        blocks: Callable[[jax.Array], tuple[jax.Array, Any]] | None = None,
    ) -> jax.Array | tuple[jax.Array, Any]:
        """Encodes `images [B, H, W, C]`.

        Args:
          images: normalised pixels.
          ids_keep: `[B, K]` patches to encode, in this order; all others are dropped before the first matrix product.
          hidden: `[B, N]` bool; embeddings of these patches are replaced by the mask token (needs `mask_token=True`).
          deterministic: no drop path; otherwise the rng stream "drop_path" is needed.
          return_layers: also return the output of every block.
          return_registers: keep the registers in what is returned, after the class token.
          arrange: maps the embedded patches with their positions, `[B, K, D]`, to the sequences to encode,
            `[B', K', D]`, before they get class tokens.
          edit: what happens to every block's attention logits (see `AttentionEdit`).
          num_keys: in every block all tokens attend to the first `num_keys` of them, a class token included.
          blocks: is run instead of the blocks, on all tokens `[B, T, D]`, class token and registers first, and gives
            those that are left and what `return_layers` returns, a pytree of such arrays (see `progressive_vit.py`).

        Returns:
          Tokens `[B, (1 +) (R +) K, D]` after the final norm, the class token first where there is one; with
          `return_layers` also `[depth, B, (1 +) (R +) K, D]`, before the final norm.
        """
        check_image_size(images.shape[1:3], self.image_size)
        patches = patchify(images, self.patch_size)
        token_init = find_scheme(self.init_scheme).token
        table, class_row = PositionTable(
            self.grid, self.width, self.position, self.class_token and self.class_position, token_init, name="position"
        )()
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
        x = PatchEmbed(self.width, self.init_scheme, self.compute, self.patch_bias, name="patch_embed")(patches)
        x = self._substitute(x, hidden)
        if table is not None:
            x = x + (table[None] if ids_keep is None else table[ids_keep]).astype(x.dtype)
        if arrange is not None:
            x = arrange(x)
        x = self._prepend_class_token(x, class_row)
        if self.num_registers:
            if edit is not None or num_keys is not None:
                raise ConfigError("model.num_registers is not 0, which this method does not work with; set it to 0.")
            x = self._insert_registers(x)
        if self.pre_norm:
            x = self._norm("pre_norm")(x)
        bias = None
        if self.relative_bias:
            bias = RelativeBias(self.grid, self.heads, self.class_token, name="relative_bias")()
        if blocks is not None:
            x, layers = blocks(x)
        else:
            x, layers = self.block_stack(num_keys=num_keys, name="stack")(
                x,
                bias,
                deterministic=deterministic,
                return_layers=return_layers,
                edit=edit,
                rotation=self._rotation(ids_keep, arrange),
            )
        if not return_registers:
            x, layers = jax.tree.map(self._remove_registers, (x, layers))
        if self.final_norm:
            x = split_over_batch(self._norm("norm")(x))
        return (x, layers) if return_layers else x

    @nn.nowrap
    def block_stack(self, **changes: Any) -> BlockStack:
        """The module of the blocks, or with another `depth` and the like that of some of them."""
        own = dict(
            depth=self.depth,
            heads=self.heads,
            mlp_hidden=int(self.width * self.mlp_ratio + 0.5),
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            init_scheme=self.init_scheme,
            compute=self.compute,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
        )
        return BlockStack(**(own | changes))

    def _norm(self, name: str) -> nn.LayerNorm:
        return layer_norm(self.compute, name, self.norm_epsilon)

    def _rotation(self, ids_keep: jax.Array | None, arrange: Callable | None) -> Rotation | None:
        if self.position != "rope":
            return None
        if arrange is not None:
            raise ConfigError(
                "model.position is 'rope', but this method puts patches together anew, so that they have no place in a "
                "grid; choose 'sincos'."
            )
        return grid_rotation(self.grid, self.width // self.heads, ids_keep, prefix=int(self.class_token))

    def _substitute(self, x: jax.Array, hidden: jax.Array | None) -> jax.Array:
        if not self.mask_token:
            return x
        token = self.param("mask_token", find_scheme(self.init_scheme).token, (self.width,), jnp.float32)
        if hidden is None:
            return x
        return jnp.where(hidden[:, :, None], token.astype(x.dtype)[None, None], x)

    def _prepend_class_token(self, x: jax.Array, class_row: jax.Array | None) -> jax.Array:
        if not self.class_token:
            return x
        token = self.param("class_token", find_scheme(self.init_scheme).token, (self.width,), jnp.float32)
        if class_row is not None:
            token = token + class_row
        token = jnp.broadcast_to(token.astype(x.dtype)[None, None], (x.shape[0], 1, self.width))
        return jnp.concatenate([token, x], axis=1)

    def _insert_registers(self, x: jax.Array) -> jax.Array:
        shape = (self.num_registers, self.width)
        registers = self.param("registers", find_scheme(self.init_scheme).token, shape, jnp.float32)
        registers = jnp.broadcast_to(registers.astype(x.dtype)[None], (x.shape[0], *shape))
        prefix = int(self.class_token)
        return jnp.concatenate([x[:, :prefix], registers, x[:, prefix:]], axis=1)

    def _remove_registers(self, x: jax.Array) -> jax.Array:
        if not self.num_registers:
            return x
        prefix = int(self.class_token)
        return jnp.concatenate([x[..., :prefix, :], x[..., prefix + self.num_registers :, :]], axis=-2)


def default_config() -> ConfigDict:
    """The `model` section of a ViT-B/16."""
    return ConfigDict(
        dict(
            backbone="vit",
            patch_size=16,
            **vit_size("B"),
            class_token=True,
            pool="class",
            position="sincos",
            relative_bias=False,
            qkv_bias="all",
            layer_scale=optional(float),
            drop_path=0.0,
            init_scheme="xavier",
            **ENCODER_VARIANTS,
        )
    )


def build(config: ConfigDict, *, mask_token: bool = False, final_norm: bool = True, backbone: str = "vit") -> ViT:
    """The encoder a run's `config` asks for (`image_size`, `model`, `compute`).

    `backbone` is the name of the kind that is built of it, if it is but a part of that.

    Raises:
      ConfigError: another `model.backbone`, sizes that do not divide, or an unknown choice.
    """
    model = config.model
    if model.backbone != backbone:
        raise ConfigError(
            f"model.backbone is {model.backbone!r}, which {config.method or config.task} does not work with; set it to "
            f"{backbone!r}."
        )
    check_heads(model.width, model.heads, "model")
    if model.depth < 1:
        raise ConfigError(f"model.depth is {model.depth}; an encoder needs at least one block.")
    if model.qkv_bias not in ("all", "qv", "none"):
        raise ConfigError(f"model.qkv_bias is {model.qkv_bias!r}; choose 'all', 'qv' or 'none'.")
    if model.pool not in ("class", "mean") or (model.pool == "class" and not model.class_token):
        raise ConfigError(f"model.pool is {model.pool!r}; choose 'mean', or 'class' with model.class_token=True.")
    if not 0.0 <= model.drop_path < 1.0:
        raise ConfigError(f"model.drop_path is {model.drop_path}; it must lie in [0, 1).")
    if model.position not in POSITIONS:
        raise ConfigError(f"model.position is {model.position!r}; choose one of {', '.join(POSITIONS)}.")
    if model.position.startswith("sincos") and model.width % 4:
        raise ConfigError(f"model.width is {model.width}; sin-cos positions need a multiple of 4.")
    if model.position == "rope":
        check_head_dim(model.width, model.heads, "model")
    if model.num_registers and (model.position == "rope" or model.relative_bias):
        raise ConfigError("model.num_registers needs absolute positions; set it to 0, or change model.position.")
    if model.activation not in MLP_KINDS:
        raise ConfigError(f"model.activation is {model.activation!r}; choose one of {', '.join(MLP_KINDS)}.")
    find_scheme(model.init_scheme)
    encoder = ViT(
        image_size=as_pair(config.image_size),
        patch_size=as_pair(model.patch_size),
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        class_token=model.class_token,
        mask_token=mask_token,
        position=model.position,
        relative_bias=model.relative_bias,
        qkv_bias=model.qkv_bias,
        layer_scale=model.layer_scale,
        drop_path=model.drop_path,
        final_norm=final_norm,
        pool=model.pool,
        init_scheme=model.init_scheme,
        **{key: model[key] for key in ENCODER_VARIANTS},
        compute=Compute.from_config(config.compute),
    )
    patch_grid(encoder.image_size, encoder.patch_size)
    return encoder


def build_supervised(config: ConfigDict) -> tuple[ViT, bool]:
    """The encoder without a final norm where features are averaged, and whether a norm follows the average instead."""
    averaged = config.model.pool == "mean"
    return build(config, final_norm=not averaged), averaged


def check_image_size(given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises ConfigError unless images are of the size an encoder is made for.

    Where patches are chosen by number, those of another size would go unnoticed, at wrong positions.
    """
    if tuple(given) != tuple(expected):
        theirs, ours = ("x".join(map(str, size)) for size in (given, expected))
        raise ConfigError(f"Images of {theirs} were given to an encoder for {ours}; set image_size, or resize them.")


def check_heads(width: int, heads: int, section: str) -> None:
    """Raises ConfigError unless `heads` divides `width`."""
    if heads < 1 or width % heads:
        raise ConfigError(
            f"{section}.width {width} is not divisible by {section}.heads {heads}; change one of the two."
        )
