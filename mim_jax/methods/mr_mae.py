"""MR-MAE: "Mimic before Reconstruct: Enhancing Masked Autoencoders with Feature Mimicking", Gao et al., IJCV 2023.

arXiv 2303.05475. No code of it is public; with the hybrid encoder of ConvMAE it is also called MR-MCMAE or ConvMAE-v2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.masking.attentive import attentive_mask
from mim_jax.masking.token_mask import TokenMask, num_kept, take_tokens
from mim_jax.models import backbone, teachers
from mim_jax.models.feature_head import FeatureHead
from mim_jax.models.masked_autoencoder import MaskedAutoencoder
from mim_jax.models.teachers import ViTTeacher
from mim_jax.targets.alignment import NORMALIZATIONS, normalize_target

_FOCUSES = ("random", "top_k", "sample")
_SECTIONS = ("teacher", "second_teacher")


class MRMAE(MaskedAutoencoder):
    """A masked autoencoder whose encoded visible patches mimic a frozen teacher's before the decoder sees them.

    The two losses are about disjoint patches: the mimic loss, squared distance of a dense layer's output to the
    teacher's patch tokens, about the visible ones after the encoder's final norm; the reconstruction loss, MAE's or
    ConvMAE's, about the hidden ones. The decoder reads what the dense layer reads. `model.backbone` is "vit" or
    "conv_vit". The teacher sees the intact image: without gradients, about the work of the student's step.

    What no source tells, with the reading chosen here: the target is the teacher's last block, each token normalised
    without affine parameters (raw CLIP features have channels that would drown the pixels; `target_norm`); both losses
    weigh the same (`mimic_weight`); of two teachers the mimic losses are added; pixels are normalised by patch, as in
    ConvMAE. A plain ViT's blocks are not fused, which the paper also tries.
    """

    encoder_needs = "token_dropping"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 with CLIP ViT-B/16."""
        config = super().default_config()
        config.model = backbone.default_config()
        config.teacher = teachers.section("clip_vit_b16")
        config.second_teacher = teachers.section("")  # none while its name is empty
        config.mimic_weight = 1.0  # 0: MAE, or ConvMAE
        config.target_norm = "whiten"  # "whiten", "l2", "bn" or "none"; see `targets.alignment`
        # Which patches stay visible: "random" ones, the "top_k" by the first teacher's attention, or a "sample" in
        # proportion to it.
        config.focus = "random"
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        for key, choices in (("focus", _FOCUSES), ("target_norm", NORMALIZATIONS)):
            if config[key] not in choices:
                raise ConfigError(f"{key} is {config[key]!r}; choose one of {', '.join(choices)}.")
        if config.mimic_weight < 0.0:
            raise ConfigError(f"mimic_weight is {config.mimic_weight}; it must not be negative.")
        names = [name for name in _SECTIONS if name == "teacher" or config[name].name]
        self.teachers: Mapping[str, ViTTeacher] = {name: teachers.build(config[name], config) for name in names}
        for name, teacher in self.teachers.items():
            if teacher.encoder.grid != self.encoder.grid:
                ours, theirs = ("{}x{}".format(*encoder.grid) for encoder in (self.encoder, teacher.encoder))
                raise ConfigError(
                    f"The teacher {name!r} has {theirs} patches, the student {ours}; set {name}.image_size so that "
                    "each patch has its target."
                )
        if config.focus != "random":
            self.teachers["teacher"].check_class_attention()
        self.heads = {}
        if config.mimic_weight > 0.0:
            self.heads = {
                name: FeatureHead(
                    teacher.encoder.width, init_scheme=self.encoder.init_scheme, compute=self.encoder.compute
                )
                for name, teacher in self.teachers.items()
            }

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `decoder` and for every teacher `<name>_head`; `teacher`: the teachers by name."""
        student_rng, head_rng, teacher_rng = jax.random.split(rng, 3)
        params = super().init(student_rng, batch)["params"]
        tokens = jnp.zeros((1, 1, self.encoder.width), jnp.float32)
        for number, (name, head) in enumerate(self.heads.items()):
            params[f"{name}_head"] = head.init(jax.random.fold_in(head_rng, number), tokens)["params"]
        frozen = {
            name: teacher.init(jax.random.fold_in(teacher_rng, number))
            for number, (name, teacher) in enumerate(self.teachers.items())
        }
        return {"params": params, "teacher": frozen}

    def prepare(self, variables: Variables, batch: Batch) -> Batch:
        """With a focus, `batch["taught"]`: what masks and loss both ask the first teacher for."""
        if self.config.focus == "random":
            return batch
        return {**batch, "taught": self.taught(variables, batch)}

    def teach(self, variables: Variables, batch: Batch) -> dict[str, Any]:
        """The `patches [B, N, C]` of every teacher that is mimicked; with a focus, the first one's `importance [B, N]`.

        The latter is the class token's attention.
        """
        images, frozen, focused = batch["image"], variables["teacher"], self.config.focus != "random"
        taught = {"patches": {}}
        if focused:
            teacher = self.teachers["teacher"]
            features = teacher(frozen["teacher"], images)
            taught["importance"] = teacher.class_attention(frozen["teacher"], features).mean(axis=1)
        for name in self.heads:
            teacher = self.teachers[name]
            known = focused and name == "teacher"
            tokens = features.layers[-1] if known else teacher.last_layer(frozen[name], images)
            taught["patches"][name] = tokens[:, int(teacher.encoder.class_token) :]
        return taught

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """The patches to hide: random ones, or those that the first teacher attends to least."""
        del clock
        if self.config.focus == "random":
            shape = (batch["image"].shape[0], self.encoder.num_patches)
            return TokenMask.from_noise(jax.random.uniform(rng, shape, jnp.float32), self.num_keep)
        importance = self.taught(variables, batch)["importance"]
        if self.config.focus == "top_k":
            return TokenMask.from_noise(-importance, self.num_keep)
        return attentive_mask(rng, importance, self.num_keep)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """`terms["reconstruction"] + mimic_weight * terms["mimic"]`; with nothing hidden the first is 0.

        `aux["metrics"]` has the mimic loss of every teacher, `aux["mimicked"]` and `aux["features"]` by teacher what it
        compares, `[B, K, C]`; the rest is as in MAE.
        """
        del clock
        latent = self._encode_visible(variables, batch["image"], masks, rng)
        loss, aux = self._reconstruct_hidden(variables, batch, masks, latent)
        if not self.heads:
            return loss, aux
        visible = latent[:, int(self.encoder.class_token) :]
        mimicked = {
            name: head.apply({"params": variables["params"][f"{name}_head"]}, visible)
            for name, head in self.heads.items()
        }
        patches = self.taught(variables, batch)["patches"]
        features = {name: self._target(patches[name], masks) for name in self.heads}
        mimics = {name: jnp.square(mimicked[name] - features[name]).mean() for name in self.heads}
        mimic = sum(mimics.values(), start=jnp.zeros((), jnp.float32))
        return loss + self.config.mimic_weight * mimic, {
            **aux,
            "terms": {**aux["terms"], "mimic": mimic},
            "metrics": {f"mimic_{name}": value for name, value in mimics.items()},
            "mimicked": mimicked,
            "features": features,
        }

    def _reconstruct_hidden(self, variables: Variables, batch: Batch, masks: TokenMask, latent: jax.Array):
        """The reconstruction loss; a mean over no patches, were it computed, would be 0 / 0."""
        if masks.num_keep == self.encoder.num_patches:
            zero = jnp.zeros((), jnp.float32)
            return zero, {"terms": {"reconstruction": zero}, "latent": latent}
        prediction = self.decoder.apply({"params": variables["params"]["decoder"]}, latent, masks)
        return self._regress(batch, masks, latent, prediction)

    def _target(self, patches: jax.Array, masks: TokenMask) -> jax.Array:
        """Normalised features of the visible ones of a teacher's `patches [B, N, C]`, `[B, K, C]` float32."""
        if self.config.target_norm == "bn":  # whose statistics are those of all patches
            return take_tokens(normalize_target(patches, "bn"), masks.ids_keep)
        return normalize_target(take_tokens(patches, masks.ids_keep), self.config.target_norm)

    def _build_encoder(self) -> backbone.Encoder:
        return backbone.build(self.config)

    def _count_kept(self) -> int:
        return num_kept(self.encoder.num_patches, self.config.mask_ratio, may_keep_all=True)
