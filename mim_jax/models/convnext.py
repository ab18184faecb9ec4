"""ConvNeXts (Liu et al. 2022, arXiv 2201.03545), dense or with hidden cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path, gelu, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.convolution import Conv, at_every_site
from mim_jax.layers.dense import Dense
from mim_jax.layers.materialize import materialize
from mim_jax.layers.patches import as_pair
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.sites import Features, Sites
from mim_jax.layers.stack import stack_blocks
from mim_jax.models.cnn import ConvEncoder, check_image_size, check_model, maps_of, tokens_of

EPSILON = 1e-6  # of its norms

_SIZES = {
    "T": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "S": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "B": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "L": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
_kernel_init = nn.initializers.normal(0.02)  # the official truncated normal cuts at +-2, a hundred sigmas away


def convnext_size(name: str) -> dict[str, tuple[int, ...]]:
    """`depths` and `widths` of a standard size: T, S, B or L.

    Raises:
      ConfigError: there is no such size.
    """
    if name not in _SIZES:
        raise ConfigError(f"There is no ConvNeXt size {name!r}; choose one of {', '.join(_SIZES)}.")
    return dict(zip(("depths", "widths"), _SIZES[name], strict=True))


class ConvNeXtBlock(nn.Module):
    """`x += gamma * fc2(gelu(fc1(norm(depthwise7x7(x)))))`, with drop path on the branch."""

    stochastic: bool = False  # whether drop path is active
    layer_scale: float = 1e-6  # initial gamma
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Features, drop_rate: jax.Array, sites: Sites) -> tuple[Features, None]:
        """Maps features to the same shape. The None is for scanning."""
        x = split_over_batch(x)
        width = sites.features(x).shape[-1]
        options = dict(dtype=self.compute.jax_dtype, kernel_init=_kernel_init)
        conv = Conv(width, _kernel_init, 7, depthwise=True, use_bias=True, compute=self.compute, name="depthwise")
        norm = layer_norm(self.compute, "norm", EPSILON)
        fc1, fc2 = Dense(4 * width, name="fc1", **options), Dense(width, name="fc2", **options)
        gamma = self.param("gamma", nn.initializers.constant(self.layer_scale), (width,), jnp.float32)
        rng = self.make_rng("drop_path") if self.stochastic else None

        def rest(x: jax.Array) -> jax.Array:
            x = at_every_site(lambda rows: fc2(gelu(fc1(norm(rows)))), x)
            x = x * jnp.expand_dims(gamma.astype(x.dtype), tuple(range(x.ndim - 1)))
            return x if rng is None else drop_path(x, drop_rate, rng)

        x = split_over_batch(sites.add(x, sites.map(rest, conv(x, sites))))
        return (jax.tree.map(materialize, x) if self.compute.materializes else x), None


class ConvNeXtStage(nn.Module):
    """Blocks of one width, stacked on a layer axis under `blocks`, where optimisers look for layers."""

    drop_rates: tuple[float, ...]  # of every block
    layer_scale: float = 1e-6
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Features, sites: Sites, *, deterministic: bool = True) -> Features:
        """Applies all blocks."""
        blocks = stack_blocks(ConvNeXtBlock, len(self.drop_rates), self.compute, (0, nn.broadcast))(
            stochastic=max(self.drop_rates) > 0.0 and not deterministic,
            layer_scale=self.layer_scale,
            compute=self.compute,
            name="blocks",
        )
        x, _ = blocks(x, jnp.asarray(self.drop_rates, jnp.float32), sites)
        return x


class ConvNeXt(ConvEncoder):
    """A ConvNeXt without its classifier; its tokens are the positions of the last feature map.

    With `active` it is SparK's sparse network: the numbers of every layer exist at visible sites only (see
    `mim_jax.layers.sites`).

    Official names: `downsample_layers.0` is the stem, a convolution and a norm; `downsample_layers.<n>`, a norm and a
    convolution, comes before `stages.<n>`. For small images the stem's stride can be smaller than 4. The official norm
    after the global average is the classifier's; a `final_norm` normalises every token.
    """

    stem_size: int = 4  # of the stem's convolution, which is its stride too
    layer_scale: float = 1e-6  # initial gamma of every block
    final_norm: bool = True

    @property
    def norm_epsilon(self) -> float:
        """Of its LayerNorms."""
        return EPSILON

    @property
    def stem_stride(self) -> int:
        """That of its one convolution."""
        return self.stem_size

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """As the official fine-tuning counts: three blocks of the third stage, and each of the others as a whole."""
        return tuple(3 if number == 2 else depth for number, depth in enumerate(self.depths))

    def layer_ids(self, name: str) -> int | list[int]:
        """The layer of the parameter of that path, or those of every layer of a stacked one."""
        module = name.partition("/")[0]
        if module.startswith("reduce"):  # belongs to the first block behind it
            return self.block_layers[int(module[len("reduce")])][0]
        if module.startswith("stage"):
            return list(self.block_layers[int(module.removeprefix("stage"))])
        return 0 if module.startswith("stem") else self.num_layers + 1

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        active: jax.Array | None = None,
        num_active: int | None = None,
        deterministic: bool = True,
        return_stages: bool = False,
        sites: Sites | None = None,
    ) -> jax.Array | list[jax.Array]:
        """Encodes `images [B, H, W, C]`.

        Args:
          images: normalised pixels.
          active: `[B, rows, columns]` bool on the `grid`, True = visible; None: everything is.
          num_active: how many cells of every image are active, where these are equally many: lets a "gathered" network
            compute those only.
          deterministic: no drop path; otherwise the rng stream "drop_path" is needed.
          return_stages: return every stage's map, before any final norm, instead of tokens.
          sites: another rule for hidden sites than that of `active`.

        Returns:
          Tokens `[B, N, D]` in raster order; or maps `[B, H / stride, W / stride, C]`, one of each stage. Both are
          zero at hidden sites.
        """
        sites = self.rule(images, active, num_active) if sites is None else sites
        x, stages = sites.enter(images.astype(self.compute.jax_dtype)), []
        for number, (width, rates) in enumerate(zip(self.widths, self.drop_rates(), strict=True)):
            if number == 0:
                x = self._reduce(width, self.stem_size, "stem_conv")(x, sites)
                x = sites.map(layer_norm(self.compute, "stem_norm", EPSILON), x)
            else:
                x = sites.map(layer_norm(self.compute, f"reduce{number}_norm", EPSILON), x)
                x = self._reduce(width, 2, f"reduce{number}_conv")(x, sites)
            stage = ConvNeXtStage(rates, self.layer_scale, self.compute, name=f"stage{number}")
            x = stage(x, sites, deterministic=deterministic)
            stages.append(x)
        if return_stages:
            return maps_of(stages, sites)
        if self.final_norm:
            x = sites.map(layer_norm(self.compute, "norm", EPSILON), x)
        return tokens_of(x, sites)

    def _reduce(self, width: int, stride: int, name: str) -> Conv:
        """A convolution of windows that do not overlap."""
        return Conv(width, _kernel_init, stride, stride, use_bias=True, compute=self.compute, name=name)


def default_config() -> ConfigDict:
    """The `model` section of a ConvNeXt-B."""
    return ConfigDict(
        dict(
            backbone="convnext",
            **convnext_size("B"),
            stem_size=4,
            layer_scale=1e-6,
            drop_path=0.0,
            pool="mean",
            sparse="gathered",
        )
    )


def build(config: ConfigDict, *, final_norm: bool = True) -> ConvNeXt:
    """The encoder a run's `config` asks for (`image_size`, `model`, `compute`).

    Raises:
      ConfigError: sizes that do not fit, or an unknown choice.
    """
    model = config.model
    check_model(model)
    if model.stem_size not in (1, 2, 4):
        raise ConfigError(f"model.stem_size is {model.stem_size}; choose 1, 2 or 4.")
    encoder = ConvNeXt(
        image_size=as_pair(config.image_size),
        depths=tuple(model.depths),
        widths=tuple(model.widths),
        drop_path=model.drop_path,
        sparse=model.sparse,
        compute=Compute.from_config(config.compute),
        stem_size=model.stem_size,
        layer_scale=model.layer_scale,
        final_norm=final_norm,
    )
    check_image_size(encoder)
    return encoder


def build_supervised(config: ConfigDict) -> tuple[ConvNeXt, bool]:
    """The encoder a classifier reads, and whether a norm follows the average: the official one does."""
    return build(config, final_norm=False), True
