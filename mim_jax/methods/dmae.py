"""DMAE: "Masked Autoencoders Enable Efficient Knowledge Distillers", Bai et al., CVPR 2023, arXiv 2208.12256.

Another method of this name, a denoising MAE for certified robustness, is not meant.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.unit import unit
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import feature_head, teachers
from mim_jax.models.feature_head import FeatureHead
from mim_jax.models.masked_autoencoder import MaskedAutoencoder

_DISTANCES = {"l1": jnp.abs, "l2": jnp.square}


class DMAE(MaskedAutoencoder):
    """A masked autoencoder whose encoder, halfway, also predicts what a larger one makes of the same visible patches.

    The larger one is frozen, an MAE's encoder, and runs no further than its last aligned block: 18 of ViT-L's 24 blocks
    on a quarter of the patches are 28 % of the matrix products of a step that trains a ViT-B. After block `s` of the
    student (counted from 0, before any norm) a head predicts the teacher's features after block `t`. Both are brought
    to length 1 over the channels, and the distance is the mean over all tokens, the class token included, AND all
    channels: its size is about `1 / sqrt(channels)`, small beside the pixels', and its weight is 1 all the same.

    At mask ratios of 0.95 and 0.98 ViT-B sees 9 and 3 patches: the official code truncates, where the paper speaks of
    ten and four. Teacher predictions as targets of the decoder, which no released script uses, are left out.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 from MAE's ViT-L/16, on raw pixels as in the released script."""
        config = super().default_config()
        config.norm_pix_loss = False
        config.teacher = teachers.section("mae_vit_l16")
        config.alignment = ConfigDict(
            dict(
                student_blocks=optional(tuple),  # from 0, rising; None: the one at three quarters of the depth
                teacher_blocks=optional(tuple),  # their partners
                head="linear",  # or "mlp"; "none" compares the features as they are, of equal widths
                loss="l1",  # or "l2", the mean square
                weight=1.0,
            )
        )
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        alignment = config.alignment
        student = _aligned_blocks(alignment.student_blocks, self.encoder.depth, "student")
        depth = teachers.build(config.teacher, config).encoder.depth
        teacher = _aligned_blocks(alignment.teacher_blocks, depth, "teacher")
        if len(student) != len(teacher):
            raise ConfigError(
                f"alignment.student_blocks are {student} and teacher_blocks {teacher}; give as many of one as of the "
                "other."
            )
        self.pairs = tuple(zip(student, teacher, strict=True))
        self.teacher = teachers.build(config.teacher, config, until=teacher[-1] + 1)
        self.teachers = {"teacher": self.teacher}
        self.head = self._build_head()

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder", "alignment" (unless the head is "none")}, "teacher": {"teacher"}}`."""
        student_rng, head_rng, teacher_rng = jax.random.split(rng, 3)
        params = super().init(student_rng, batch)["params"]
        if self.head is not None:
            tokens = jnp.zeros((1, 1, self.encoder.width), jnp.float32)
            rngs = jax.random.split(head_rng, len(self.pairs))
            params["alignment"] = {
                f"head{number}": self.head.init(key, tokens)["params"] for number, key in enumerate(rngs)
            }
        return {"params": params, "teacher": {"teacher": self.teacher.init(teacher_rng)}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """A uniformly random `mask_ratio` of each image's patches, for student and teacher alike."""
        del variables, clock
        return random_mask(rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """MAE's loss, `aux["terms"]["reconstruction"]`, plus the distances of all aligned pairs, "feature"."""
        del clock
        params = variables["params"]
        latent, layers = self.encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            ids_keep=masks.ids_keep,
            return_layers=True,
            **drop_path_rngs(rng),
        )
        prediction = self.decoder.apply({"params": params["decoder"]}, latent, masks)
        reconstruction, aux = self._regress(batch, masks, latent, prediction)
        targets = self.teacher(variables["teacher"]["teacher"], batch["image"], masks.ids_keep).layers
        distances = [
            self._distance(params, number, layers[student], targets[teacher])
            for number, (student, teacher) in enumerate(self.pairs)
        ]
        feature = sum(distances)
        aux["terms"]["feature"] = feature
        return reconstruction + self.config.alignment.weight * feature, aux

    def _distance(self, params: Variables, number: int, features: jax.Array, target: jax.Array) -> jax.Array:
        """Of the student's `features [B, 1 + K, D]` of pair `number` to the teacher's `[B, 1 + K, C]`."""
        if self.head is None:
            features, target = features.astype(jnp.float32), target.astype(jnp.float32)
        else:
            head = {"params": params["alignment"][f"head{number}"]}
            features, target = unit(self.head.apply(head, features)), unit(target)
        return _DISTANCES[self.config.alignment.loss](features - target).mean()

    def _build_head(self) -> FeatureHead | None:
        """The head of every pair; raises ConfigError for a choice there is not, or networks that do not fit."""
        alignment, ours, theirs = self.config.alignment, self.encoder, self.teacher.encoder
        if alignment.loss not in _DISTANCES:
            raise ConfigError(f"alignment.loss is {alignment.loss!r}; choose one of {', '.join(_DISTANCES)}.")
        if alignment.head not in (*feature_head.KINDS, "none"):
            kinds = ", ".join((*feature_head.KINDS, "none"))
            raise ConfigError(f"alignment.head is {alignment.head!r}; choose one of {kinds}.")
        if alignment.weight < 0.0:
            raise ConfigError(f"alignment.weight is {alignment.weight}; it must not be negative.")
        teachers.check_same_tokens(theirs, ours)
        if alignment.head == "none":
            if theirs.width != ours.width:
                raise ConfigError(
                    f"alignment.head is 'none', but the student is {ours.width} wide and the teacher {theirs.width}; "
                    "choose 'linear'."
                )
            return None
        # The official heads are made after the model's own initialisation, and so have PyTorch's.
        return FeatureHead(theirs.width, alignment.head, None, ours.compute)


def _aligned_blocks(blocks: tuple[int, ...] | None, depth: int, whose: str) -> tuple[int, ...]:
    """Numbers of blocks from 0; raises ConfigError unless they rise and exist."""
    if blocks is None:
        return (max(3 * depth // 4, 1) - 1,)
    whole = all(type(block) is int and 0 <= block < depth for block in blocks)
    if not blocks or not whole or list(blocks) != sorted(set(blocks)):
        raise ConfigError(
            f"alignment.{whose}_blocks is {blocks}; give rising numbers of blocks from 0 to {depth - 1}, the last one."
        )
    return tuple(blocks)
