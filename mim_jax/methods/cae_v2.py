"""CAE v2: "CAE v2: Context Autoencoder with CLIP Target", Zhang et al., TMLR 2023, arXiv 2211.09799.

Official code: Atten4Vis/CAE, `--model_type caev2`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.unit import unit
from mim_jax.masking.token_mask import TokenMask, take_tokens
from mim_jax.models import projected_teacher, teachers
from mim_jax.models.context_autoencoder import ContextAutoencoder


class CAEv2(ContextAutoencoder):
    """Every token, encoded or regressed, predicts what a frozen CLIP says of it in the space shared with texts.

    Encoder and regressor are CAE's, the regressor without its final norm. Neither an alignment branch nor a decoder
    is left: one norm and one dense layer make predictions of the class token, the visible tokens and the regressed
    ones. The loss is the cosine distance to CLIP's tokens of the intact image, mean over all of them.

    The teacher sees all patches, without gradients: about half the student's work on half of them, a third of a step.
    """

    regressor_norm = False

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 with CLIP ViT-B/16."""
        config = super().default_config()
        config.update(teacher=teachers.section("clip_vit_b16"))
        config.target_width = optional(int, 512)  # of CLIP's projection; None: the teacher's tokens after its norm
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.teacher = projected_teacher.build(config.teacher, config, config.target_width)
        self.teachers = {"teacher": self.teacher}
        theirs = self.teacher.encoder
        if theirs.grid != self.encoder.grid or theirs.class_token != self.encoder.class_token:
            raise ConfigError(
                f"The teacher has {theirs.grid[0]}x{theirs.grid[1]} patches and class_token={theirs.class_token}, the "
                f"student {self.encoder.grid[0]}x{self.encoder.grid[1]} and {self.encoder.class_token}; set "
                "teacher.image_size and model.class_token so that each token has its target."
            )
        self.head = TokenHead(self.teacher.width, self.encoder.init_scheme, self.encoder.compute)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `projection` (where widths differ), `regressor`, `decoder`; `teacher`: `teacher`."""
        rng, head_rng, teacher_rng = jax.random.split(rng, 3)
        params = super().init(rng, batch)["params"]
        tokens = jnp.zeros((1, 1, self.regressor.width), jnp.float32)
        params["decoder"] = self.head.init(head_rng, tokens)["params"]
        return {"params": params, "teacher": {"teacher": self.teacher.init(teacher_rng)}}

    def teach(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The teacher's `tokens [B, 1 + N, target_width]` float32."""
        return {"tokens": self.teacher(variables["teacher"]["teacher"], batch["image"])}

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """Mean of `1 - cos(prediction, target)` over all tokens; `aux["terms"]["cosine"]` is the same number.

        `aux["prediction"]` and `aux["target"]` are unit vectors `[B, 1 + N, target_width]`: the class token's, then the
        visible ones' and the hidden ones' in the order of `masks.order`.
        """
        del clock
        params = variables["params"]
        encoder_rng, regressor_rng = (None, None) if rng is None else jax.random.split(rng)
        latent, visible = self._latents(params, batch["image"], masks.ids_keep, encoder_rng)
        regressed = self._regress(params, visible, masks, regressor_rng)
        tokens = jnp.concatenate([visible, regressed.astype(visible.dtype)], axis=1)
        prediction = unit(self.head.apply({"params": params["decoder"]}, tokens))
        target = unit(self._target(self.taught(variables, batch)["tokens"], masks))
        loss = (1.0 - (prediction * target).sum(axis=-1)).mean()
        return loss, {"terms": {"cosine": loss}, "prediction": prediction, "target": target, "latent": latent}

    def _target(self, tokens: jax.Array, masks: TokenMask) -> jax.Array:
        prefix = int(self.encoder.class_token)
        return jnp.concatenate([tokens[:, :prefix], take_tokens(tokens[:, prefix:], masks.order)], axis=1)


class TokenHead(nn.Module):
    """A norm and a dense layer, the same for all tokens."""

    output_dim: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps `[B, K, R]` to float32 `[B, K, output_dim]`."""
        kernel_init = find_scheme(self.init_scheme).kernel
        x = layer_norm(self.compute, "norm")(tokens)
        x = nn.Dense(self.output_dim, dtype=self.compute.jax_dtype, kernel_init=kernel_init, name="prediction")(x)
        return x.astype(jnp.float32)
