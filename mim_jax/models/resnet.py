"""ResNets of bottleneck blocks (He et al. 2016), "v1.5" as in torchvision and timm, dense or with hidden cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path
from mim_jax.layers.compute import Compute
from mim_jax.layers.convolution import Conv
from mim_jax.layers.masked_norm import EPSILON, BatchNorm
from mim_jax.layers.materialize import materialize
from mim_jax.layers.patches import as_pair
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.sites import Features, Sites
from mim_jax.layers.stack import remat_block, stack_blocks
from mim_jax.models.cnn import ConvEncoder, check_image_size, check_model, maps_of, tokens_of

EXPANSION = 4  # a block's output has this many times its inner width
STEMS = {"imagenet": 4, "small": 1}  # and their strides

_DEPTHS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3), "200": (3, 24, 36, 3)}
# Blocks that form one layer in SparK's fine-tuning, by their number in a stage that is neither the first nor the last.
_GROUPS = {4: 2, 6: 3, 8: 4, 23: 3, 24: 4, 36: 4}
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # Kaiming's, as in timm


def resnet_size(name: str) -> dict[str, tuple[int, ...]]:
    """`depths` and `widths` of a standard size: 50, 101, 152 or 200.

    Raises:
      ConfigError: there is no such size.
    """
    if name not in _DEPTHS:
        raise ConfigError(f"There is no ResNet size {name!r}; choose one of {', '.join(_DEPTHS)}.")
    return dict(depths=_DEPTHS[name], widths=(64, 128, 256, 512))


class Bottleneck(nn.Module):
    """`relu(shortcut(x) + norm(conv1x1(relu(norm(conv3x3(relu(norm(conv1x1(x)))))))))`; the 3x3 one has the stride."""

    width: int  # of the 3x3 convolution
    stride: int = 1
    projects: bool = False  # whether the shortcut is a 1x1 convolution and a norm
    stochastic: bool = False  # whether drop path is active
    train: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Features, drop_rate: jax.Array, sites: Sites) -> tuple[Features, None]:
        """Maps features to those of `EXPANSION * width` channels. The None is for scanning."""
        x = split_over_batch(x)
        branch = self._conv_norm(x, sites, self.width, "1", activate=True)
        branch = self._conv_norm(branch, sites, self.width, "2", 3, self.stride, activate=True)
        branch = self._conv_norm(branch, sites, EXPANSION * self.width, "3", zero_scale=True)
        if self.stochastic:
            rng = self.make_rng("drop_path")
            branch = sites.map(lambda y: drop_path(y, drop_rate, rng), branch)
        if self.projects:
            x = self._conv_norm(x, sites, EXPANSION * self.width, "_shortcut", stride=self.stride)
        x = split_over_batch(sites.map(nn.relu, sites.add(x, branch)))
        return (jax.tree.map(materialize, x) if self.compute.materializes else x), None

    def _conv_norm(
        self,
        x: Features,
        sites: Sites,
        features: int,
        suffix: str,
        size: int = 1,
        stride: int = 1,
        activate: bool = False,
        zero_scale: bool = False,
    ) -> Features:
        x = Conv(features, _kernel_init, size, stride, compute=self.compute, name=f"conv{suffix}")(x, sites)
        x = BatchNorm(zero_scale, self.compute, name=f"norm{suffix}")(x, sites, train=self.train)
        return sites.map(nn.relu, x) if activate else x


class ResNetStage(nn.Module):
    """The `first` block, which changes stride and width, and the other ones, stacked on a layer axis under `blocks`."""

    width: int
    drop_rates: tuple[float, ...]  # of every block
    stride: int = 1
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Features, sites: Sites, *, deterministic: bool = True, train: bool = False) -> Features:
        """Applies all blocks."""
        options = dict(
            width=self.width,
            stochastic=max(self.drop_rates) > 0.0 and not deterministic,
            train=train,
            compute=self.compute,
        )
        rates = jnp.asarray(self.drop_rates, jnp.float32)
        first = remat_block(Bottleneck, self.compute)(stride=self.stride, projects=True, name="first", **options)
        x, _ = first(x, rates[0], sites)
        if len(self.drop_rates) > 1:
            stack = stack_blocks(Bottleneck, len(self.drop_rates) - 1, self.compute, (0, nn.broadcast))
            x, _ = stack(name="blocks", **options)(x, rates[1:], sites)
        return x


class ResNet(ConvEncoder):
    """A ResNet without its classifier; its tokens are the positions of the last feature map.

    With `active` it is SparK's sparse network: the numbers of every layer exist at visible sites only (see
    `mim_jax.layers.sites`). Official names: stage n is `layer<n>`, whose block 0 is `first`.

    The stem "imagenet" is a 7x7 convolution of stride 2 and a 3x3 max pooling of stride 2; "small", for small images, a
    3x3 convolution of stride 1. `widths` are the inner ones of the blocks.
    """

    stem: str = "imagenet"
    stem_width: int = 64

    @property
    def norm_epsilon(self) -> float:
        """Of its BatchNorms."""
        return EPSILON

    @property
    def stem_stride(self) -> int:
        """4, or 1 of the small stem."""
        return STEMS[self.stem]

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each stage's map."""
        return tuple(EXPANSION * width for width in self.widths)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """The first and the last stage are one layer each, and so are 2 to 4 blocks of the others."""
        last = len(self.depths) - 1
        return tuple(d if n in (0, last) else _GROUPS.get(d, 3) for n, d in enumerate(self.depths))

    def layer_ids(self, name: str) -> int | list[int]:
        """The layer of the parameter of that path, or those of every layer of a stacked one."""
        module, _, rest = name.partition("/")
        if module.startswith("stem"):
            return 0
        layers = self.block_layers[int(module.removeprefix("stage")) - 1]
        return layers[0] if rest.startswith("first/") else list(layers[1:])

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        active: jax.Array | None = None,
        num_active: int | None = None,
        deterministic: bool = True,
        train: bool = False,
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
          train: BatchNorm normalises by the batch and changes its running statistics (collection "batch_stats").
          return_stages: return every stage's map instead of tokens.
          sites: another rule for hidden sites than that of `active`.

        Returns:
          Tokens `[B, N, D]` in raster order; or maps `[B, H / stride, W / stride, C]`, one of each stage. Both are
          zero at hidden sites.
        """
        sites = self.rule(images, active, num_active) if sites is None else sites
        x = sites.enter(images.astype(self.compute.jax_dtype))
        imagenet = self.stem == "imagenet"
        size, stride = (7, 2) if imagenet else (3, 1)
        x = Conv(self.stem_width, _kernel_init, size, stride, compute=self.compute, name="stem_conv")(x, sites)
        x = sites.map(nn.relu, BatchNorm(compute=self.compute, name="stem_norm")(x, sites, train=train))
        if imagenet:
            x = sites.max_pool(x, 3, 2)
        stages = []
        for number, (width, rates) in enumerate(zip(self.widths, self.drop_rates(), strict=True), 1):
            stage = ResNetStage(width, rates, 1 if number == 1 else 2, self.compute, name=f"stage{number}")
            x = stage(x, sites, deterministic=deterministic, train=train)
            stages.append(x)
        return maps_of(stages, sites) if return_stages else tokens_of(x, sites)


def default_config() -> ConfigDict:
    """The `model` section of a ResNet-50."""
    return ConfigDict(
        dict(
            backbone="resnet",
            **resnet_size("50"),
            stem="imagenet",
            stem_width=64,
            drop_path=0.0,
            pool="mean",
            sparse="gathered",
        )
    )


def build(config: ConfigDict, *, final_norm: bool = True) -> ResNet:
    """The encoder a run's `config` asks for (`image_size`, `model`, `compute`); it has no final norm to leave out.

    Raises:
      ConfigError: sizes that do not fit, or an unknown choice.
    """
    del final_norm
    model = config.model
    check_model(model)
    if model.stem not in STEMS:
        raise ConfigError(f"model.stem is {model.stem!r}; choose one of {', '.join(STEMS)}.")
    if model.stem_width < 1:
        raise ConfigError(f"model.stem_width is {model.stem_width}; give a positive number.")
    encoder = ResNet(
        image_size=as_pair(config.image_size),
        depths=tuple(model.depths),
        widths=tuple(model.widths),
        drop_path=model.drop_path,
        sparse=model.sparse,
        compute=Compute.from_config(config.compute),
        stem=model.stem,
        stem_width=model.stem_width,
    )
    check_image_size(encoder)
    return encoder


def build_supervised(config: ConfigDict) -> tuple[ResNet, bool]:
    """The encoder a classifier reads, and whether a norm follows the average: none does."""
    return build(config), False
