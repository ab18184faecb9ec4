"""G2SD: "Generic-to-Specific Distillation of Masked Autoencoders", Huang et al., CVPR 2023, arXiv 2302.14771.

The first of its two stages; the second is `tasks/distillation.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask, take_tokens
from mim_jax.models import autoencoder_teacher, teachers, vit
from mim_jax.models.feature_head import FeatureHead
from mim_jax.models.masked_autoencoder import MaskedAutoencoder
from mim_jax.models.pixel_decoder import DecoderTrunk
from mim_jax.targets.features import normalized_features, smooth_l1

_BETA = 2.0  # of the smooth L1 loss: PyTorch's convention, and twice its default


class G2SD(MaskedAutoencoder):
    """Generic distillation: a small masked autoencoder predicts the decoder's hidden states of a large, frozen one.

    Both see the same visible patches. After the student's last decoder block an MLP predicts the teacher's residual
    stream after the first half of its decoder, normalised over the channels without affine parameters: of every token,
    the class token and the visible patches among them. There is no pixel loss, and neither decoder has its norm and
    its head. The student starts from scratch. The teacher is most of the work, though it runs without gradients: a
    ViT-B makes up 55 % of a step's matrix products for a ViT-S, 81 % for a ViT-Ti.

    The teacher must come with its decoder; published MAE weights mostly lack it (those called "visualize" do not), and
    the official code then goes on with a random one. Here such weights are refused.

    The official code computes, with weight 0, a second term of the encoders (`encoder_weight`); while it is 0, its head
    gets no gradient and is left out.
    """

    decoder_kind = DecoderTrunk

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-S/16 from MAE's ViT-B/16."""
        config = super().default_config()
        del config["norm_pix_loss"]
        config.model.update(vit.vit_size("S"))
        config.decoder.update(width=256, depth=4, heads=8)
        config.teacher = autoencoder_teacher.section("mae_vit_b16")
        config.supervise_all = True  # False: only the hidden patches
        config.encoder_weight = 0.0  # of the visible tokens' term: the latent predicts the teacher's before its norm
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if config.encoder_weight < 0.0:
            raise ConfigError(f"encoder_weight is {config.encoder_weight}; it must not be negative.")
        self.teacher = autoencoder_teacher.build(config.teacher, config)
        self.teachers = {"teacher": self.teacher}
        teachers.check_same_tokens(self.teacher.encoder, self.encoder)
        self.heads = {"decoder_head": self._make_head(self.teacher.decoder.width)}
        if config.encoder_weight > 0.0:
            self.heads["encoder_head"] = self._make_head(self.teacher.encoder.width)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `decoder`, `decoder_head`, `encoder_head` (if it has a weight); `teacher`: `teacher`."""
        student_rng, head_rng, teacher_rng = jax.random.split(rng, 3)
        params = super().init(student_rng, batch)["params"]
        widths = {"decoder_head": self.decoder.width, "encoder_head": self.encoder.width}
        for name, key in zip(self.heads, jax.random.split(head_rng, len(self.heads)), strict=True):
            params[name] = self.heads[name].init(key, jnp.zeros((1, 1, widths[name]), jnp.float32))["params"]
        return {"params": params, "teacher": {"teacher": self.teacher.init(teacher_rng)}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """A uniformly random `mask_ratio` of each image's patches, for student and teacher alike."""
        del variables, clock
        return random_mask(rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """Smooth L1 of decoder features, mean over batch, tokens and channels; `aux["terms"]["decoder_feature"]`.

        `aux["prediction"]` and `aux["target"]` are those features, `[B, 1 + N, D]` or, without `supervise_all`,
        `[B, N - K, D]` in the order of `masks.ids_hidden`.
        """
        del clock
        latent, decoded = self._predict(variables, batch, masks, rng)
        theirs = self.teacher(variables["teacher"]["teacher"], batch["image"], masks)
        decoded, hidden_states = (self._supervised(x, masks) for x in (decoded, theirs.decoder))
        prediction = self._apply_head(variables, "decoder_head", decoded)
        target = normalized_features(hidden_states)
        terms = {"decoder_feature": smooth_l1(prediction, target, _BETA).mean()}
        loss = terms["decoder_feature"]
        if "encoder_head" in self.heads:
            encoded = self._apply_head(variables, "encoder_head", latent)
            terms["encoder_feature"] = smooth_l1(encoded, normalized_features(theirs.encoder), _BETA).mean()
            loss = loss + self.config.encoder_weight * terms["encoder_feature"]
        return loss, {"terms": terms, "prediction": prediction, "target": target, "latent": latent}

    def reconstruct(self, variables: Variables, batch: Batch, masks: TokenMask) -> dict[str, jax.Array]:
        """Refused: features are no pictures."""
        return Objective.reconstruct(self, variables, batch, masks)

    def _supervised(self, tokens: jax.Array, masks: TokenMask) -> jax.Array:
        """Those of `tokens [B, 1 + N, D]` that the loss is about."""
        if self.config.supervise_all:
            return tokens
        return take_tokens(tokens[:, int(self.encoder.class_token) :], masks.ids_hidden)

    def _make_head(self, width: int) -> FeatureHead:
        return FeatureHead(width, "mlp", self.encoder.init_scheme, self.encoder.compute)

    def _apply_head(self, variables: Variables, name: str, tokens: jax.Array) -> jax.Array:
        return self.heads[name].apply({"params": variables["params"][name]}, tokens)
