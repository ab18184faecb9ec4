"""Self-distillation: "Self-Distillation for Further Pre-training of Transformers", Lee et al., ICLR 2023.

arXiv 2210.02871; official code: seanie12/self-distillation. The second of three stages: the first is MAE itself, from
public weights on the data of the target, and the last is fine-tuning.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import twin_teacher
from mim_jax.models.masked_autoencoder import MaskedAutoencoder


class SelfDistillFurtherPretrain(MaskedAutoencoder):
    """A masked autoencoder that goes on from public weights, held near what MAE alone made of them.

    The teacher is the same network after a first run of MAE on the same images. The student starts again from the
    weights that run started from (`init_from`), not from the teacher. Beside the masked pass, both encode the intact
    image, and the squared distance of their class tokens after the final norm is added to MAE's loss.

    A step costs MAE's and, of the whole sequence, one more encoder step and the teacher's forward pass: with three
    quarters hidden, some four times MAE's encoder.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 as in the official code, whose networks are those of transformers."""
        config = super().default_config()
        config.model.norm_epsilon = 1e-12  # the default of transformers; MAE's own code has 1e-6
        config.teacher = twin_teacher.section()
        # Of the two losses. The distance is a sum over channels, so that it may be much the larger one.
        config.reconstruction_weight = 1.0
        config.distillation_weight = 1.0
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if not config.model.class_token:
            raise ConfigError("model.class_token is False; it is the class token that is distilled, set it to True.")
        for key in ("reconstruction_weight", "distillation_weight"):
            if config[key] < 0.0:
                raise ConfigError(f"{key} is {config[key]}; it must not be negative.")
        self.teacher = twin_teacher.build(config.teacher, config, "seanie12/self-distillation")
        self.teachers = {"teacher": self.teacher}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder"}, "teacher": {"teacher"}}`."""
        student_rng, teacher_rng = jax.random.split(rng)
        return {**super().init(student_rng, batch), "teacher": {"teacher": self.teacher.init(teacher_rng)}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """A uniformly random `mask_ratio` of each image's patches, for MAE's loss alone."""
        del variables, clock
        return random_mask(rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio)

    def teach(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The teacher's `class_token [B, D]`."""
        return {"class_token": self.teacher(variables["teacher"]["teacher"], batch["image"]).tokens[:, 0]}

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """`L_MAE + L_SD`, in `aux["terms"]` as "mae" and "sd", each without its weight.

        `aux["class_token"]` and `aux["teacher_class_token"]` are what is compared, `[B, D]`.
        """
        mae_rng, intact_rng = (None, None) if rng is None else jax.random.split(rng)
        mae, aux = super().loss(variables, batch, masks, mae_rng, clock)
        student = self.encoder.apply(
            {"params": variables["params"]["encoder"]}, batch["image"], **drop_path_rngs(intact_rng)
        )
        student = student[:, 0].astype(jnp.float32)
        teacher = self.taught(variables, batch)["class_token"].astype(jnp.float32)
        distance = jnp.square(student - teacher).sum(axis=-1).mean()
        loss = self.config.reconstruction_weight * mae + self.config.distillation_weight * distance
        return loss, {
            **aux,
            "terms": {"mae": mae, "sd": distance},
            "class_token": student,
            "teacher_class_token": teacher,
        }
