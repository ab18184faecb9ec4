"""Frozen teachers: public or own encoders that a method learns from and never changes.

A teacher is an architecture, which is a row of `ARCHITECTURES`, and weights, which the loop loads. A new one is a row
here and a layout under `mim_jax/interop/layouts/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from mim_jax.contract import Batch, FrozenTeacher, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.patches import as_pair, patch_grid
from mim_jax.layers.relations import attention_inputs, attention_map, layer_params
from mim_jax.layers.resize import resize_images
from mim_jax.models import vit
from mim_jax.normalization import CLIP, IMAGENET, normalization


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A public encoder: how its `model` differs from the default one, and what it wants to see."""

    layout: str | None  # of its public weights
    model: Mapping[str, Any]
    constants: tuple | None = IMAGENET  # means and standard deviations of its input; None: those of the batch


def _clip(size: str, patch_size: int) -> Architecture:
    # The final norm and the projection are CLIP's for the class token alone.
    model = dict(pre_norm=True, activation="quick_gelu", norm_epsilon=1e-5, patch_bias=False, position="learned")
    return Architecture("openai/clip", dict(vit.vit_size(size), patch_size=patch_size, **model), CLIP)


def _plain(layout: str, size: str, patch_size: int, **model: Any) -> Architecture:
    return Architecture(layout, dict(vit.vit_size(size), patch_size=patch_size, **{"position": "learned", **model}))


_GIANT = dict(width=1536, depth=40, heads=24, mlp_ratio=8 / 3, activation="swiglu")

ARCHITECTURES: dict[str, Architecture] = {
    "clip_vit_b16": _clip("B", 16),
    "clip_vit_b32": _clip("B", 32),
    "clip_vit_l14": _clip("L", 14),
    "dino_vit_s16": _plain("facebookresearch/dino", "S", 16),
    "dino_vit_b16": _plain("facebookresearch/dino", "B", 16),
    "ibot_vit_b16": _plain("facebookresearch/dino", "B", 16),
    "dinov2_vit_s14": _plain("facebookresearch/dinov2", "S", 14, layer_scale=1.0),
    "dinov2_vit_b14": _plain("facebookresearch/dinov2", "B", 14, layer_scale=1.0),
    "dinov2_vit_l14": _plain("facebookresearch/dinov2", "L", 14, layer_scale=1.0),
    "dinov2_vit_g14": _plain("facebookresearch/dinov2", "B", 14, layer_scale=1.0, **_GIANT),
    "dinov2_vit_b14_reg": _plain("facebookresearch/dinov2:registers", "B", 14, layer_scale=1.0, num_registers=4),
    "deit_vit_s16": _plain("facebookresearch/deit", "S", 16),
    "deit_vit_b16": _plain("facebookresearch/deit", "B", 16),
    "deit_vit_b16_distilled": _plain("facebookresearch/deit:distilled", "B", 16, num_registers=1),
    "deit3_vit_b16": _plain("facebookresearch/deit:3", "B", 16, layer_scale=1e-4, class_position=False),
    "dbot_vit_b16": _plain("liuxingbin/dbot", "B", 16, pool="mean"),
    "mae_vit_b16": _plain("facebookresearch/mae", "B", 16, position="sincos"),
    "mae_vit_l16": _plain("facebookresearch/mae", "L", 16, position="sincos"),
    "mae_vit_h14": _plain("facebookresearch/mae", "H", 14, position="sincos"),
    "mae_vit_b16_finetuned": _plain("facebookresearch/mae", "B", 16, position="sincos_learned", pool="mean"),
    # This project's own encoders, as its methods train them by default; and as its classifiers.
    "vit": Architecture(None, {}, None),
    "vit_finetuned": Architecture(None, dict(position="sincos_learned", pool="mean"), None),
}

_SIZES = ("width", "depth", "heads", "patch_size", "class_token")  # of the section, where they are not None


def section(name: str, **changes: Any) -> ConfigDict:
    """A config section that names a teacher; sizes that are None are the architecture's.

    `weights` is a run's directory, a weights file read through `layout` (None: the architecture's own), "random", or
    empty: what `init_from` names.
    """
    config = ConfigDict(
        dict(
            name=name,
            weights="",
            layout=optional(str),
            dtype=optional(str),  # of its computation and its matrices; None: that of `compute`
            width=optional(int),
            depth=optional(int),
            heads=optional(int),
            patch_size=optional(int),
            class_token=optional(bool),
            image_size=optional(int),  # it sees images resized to this; None: what gives the student's grid
        )
    )
    config.update(changes)
    return config


class TeacherFeatures(NamedTuple):
    """What a teacher says of images; nothing of it has a gradient."""

    tokens: jax.Array  # after the final norm, `[B, 1 + N, C]`, the class token first where there is one
    layers: jax.Array  # the output of every block before it, `[L, B, 1 + N, C]`


class Encoder(Objective):
    """An encoder by itself, which is what the weights of a teacher are read into."""

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = vit.build(config)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder"}}`."""
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        return {"params": {"encoder": self.encoder.init(rng, images)["params"]}}

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images, normalised as the encoder wants them."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))


class ViTTeacher(FrozenTeacher):
    """A frozen ViT.

    Attributes: `section` of the config, `objective` (its whole encoder), `layout` of its public weights, `constants`
    (means and deviations of its input; None: the batch's), `encoder` (the blocks that are run), `truncated` (whether
    there are more).
    """

    def __init__(self, section: ConfigDict, objective: Encoder, architecture: Architecture, until: int | None = None):
        self.section, self.objective, self.layout = section, objective, architecture.layout
        self.constants = _constants(objective.config.channels, architecture.constants)
        depth = objective.encoder.depth
        if until is not None and not 1 <= until <= depth:
            raise ConfigError(f"Block {until} of the teacher {section.name!r} is asked for, which has {depth}.")
        self.truncated = until is not None and until < depth
        self.encoder = objective.encoder.clone(depth=until, final_norm=False) if self.truncated else objective.encoder
        self._scale, self._shift = _renormalization(objective.config, self.constants)

    def take(self, variables: Variables) -> Any:
        """Its weights from variables of `objective`: those of the blocks that are run."""
        params = dict(variables["params"]["encoder"])
        if self.truncated:
            params.pop("norm", None)
            blocks = jax.tree.map(lambda x: x[: self.encoder.depth], params["stack"]["blocks"])
            params["stack"] = {"blocks": blocks}
        return cast_matrices(params, self.encoder.compute.jax_dtype)

    def __call__(self, params: Any, images: jax.Array, ids_keep: jax.Array | None = None) -> TeacherFeatures:
        """Features of `images [B, H, W, C]` as the student's batch has them, or of their patches `ids_keep [B, K]`."""
        params = jax.lax.stop_gradient(params)
        tokens, layers = self.encoder.apply(
            {"params": params}, self.prepare(images), ids_keep=ids_keep, return_layers=True
        )
        return TeacherFeatures(*jax.lax.stop_gradient((tokens, layers)))

    def prepare(self, images: jax.Array) -> jax.Array:
        """`images` of a batch at the teacher's size and in its normalisation."""
        images = resize_images(jax.lax.stop_gradient(images), self.encoder.image_size)
        if self._scale is None:
            return images
        return images * self._scale[None, None, None] + self._shift[None, None, None]

    def last_layer(self, params: Any, images: jax.Array) -> jax.Array:
        """The last block's output before the final norm, `[B, 1 + N, C]`; no other block's is gathered."""
        encoder = self.encoder.clone(final_norm=False)
        return jax.lax.stop_gradient(encoder.apply({"params": jax.lax.stop_gradient(params)}, self.prepare(images)))

    def check_class_attention(self) -> None:
        """Raises ConfigError where `class_attention` cannot be read: no class token, registers, or a single block."""
        encoder = self.encoder
        if not encoder.class_token or encoder.num_registers or encoder.depth < 2:
            raise ConfigError(
                f"The attention of the teacher {self.section.name!r} cannot be read: that takes a class token, no "
                "registers and two blocks; choose another teacher or another masking."
            )

    def class_attention(self, params: Any, features: TeacherFeatures) -> jax.Array:
        """The last block's attention from the class token to the patches, `[B, H, N]` float32.

        Raises:
          ConfigError: see `check_class_attention`.
        """
        self.check_class_attention()
        encoder = self.encoder
        block = layer_params(jax.lax.stop_gradient(params)["stack"], -1)
        inputs = attention_inputs(
            block, features.layers[-2], norm_epsilon=encoder.norm_epsilon, dtype=encoder.compute.jax_dtype
        )
        return attention_map(inputs.query[:, :, :1], inputs.key)[:, :, 0, 1:]


def check_same_tokens(teacher: vit.ViT, student: vit.ViT) -> None:
    """Raises ConfigError unless each of the student's tokens has one of the teacher's as its partner."""
    if teacher.grid != student.grid or teacher.class_token != student.class_token:
        raise ConfigError(
            f"The teacher has {teacher.grid[0]}x{teacher.grid[1]} patches and class_token={teacher.class_token}, the "
            f"student {student.grid[0]}x{student.grid[1]} and {student.class_token}; set teacher.image_size and "
            "model.class_token so that each token has its target."
        )


def cast_matrices(params: Any, dtype: Any) -> Any:
    """A frozen network's parameters with its kernels as they are computed with, whatever they were stored in."""

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def teacher_config(section: ConfigDict, config: ConfigDict) -> ConfigDict:
    """A copy of a run's `config` for the teacher of `section` to make its own; the section's dtype is in it."""
    own = ConfigDict(config.to_dict())
    if section.dtype is not None:
        own.compute.dtype = section.dtype
    return own


def build(section: ConfigDict, config: ConfigDict, *, until: int | None = None) -> ViTTeacher:
    """The teacher a `section` of a run's `config` names; with `until`, only its first so many blocks.

    Raises:
      ConfigError: there is no such architecture, or its sizes do not fit the student's.
    """
    if section.name not in ARCHITECTURES:
        raise ConfigError(f"There is no teacher {section.name!r}; choose one of {', '.join(ARCHITECTURES)}.")
    architecture = ARCHITECTURES[section.name]
    model = vit.default_config()
    model.update(architecture.model)
    for key in _SIZES:
        if section[key] is not None:
            model[key] = section[key]
    if not model.class_token:
        model.pool = "mean"
    own = teacher_config(section, config)
    own.model = model
    grid = patch_grid(as_pair(config.image_size), as_pair(config.model.patch_size))
    ph, pw = as_pair(model.patch_size)
    with own.ignore_type():
        own.image_size = section.image_size or (grid[0] * ph, grid[1] * pw)
    return ViTTeacher(section, Encoder(FrozenConfigDict(own)), architecture, until)


def _constants(channels: int, constants: tuple | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Means and deviations `[C]` of a teacher's input; a grey image is seen as one whose colours are equal."""
    if constants is None:
        return None
    mean, std = (np.asarray(values, np.float64) for values in constants)
    if channels == 1:
        return mean.mean(keepdims=True), std.mean(keepdims=True)
    if channels != len(mean):
        raise ConfigError(f"channels is {channels}; a teacher of colour images needs 3.")
    return mean, std


def _renormalization(
    config: ConfigDict, constants: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Factor and summand `[C]` that turn the batch's normalisation into one by `constants`; None where it has them."""
    if constants is None:
        return None, None
    mean, std = (np.asarray(values, np.float64) for values in normalization(config))
    own_mean, own_std = constants
    if np.allclose(mean, own_mean) and np.allclose(std, own_std):
        return None, None
    return (std / own_std).astype(np.float32), ((mean - own_mean) / own_std).astype(np.float32)
