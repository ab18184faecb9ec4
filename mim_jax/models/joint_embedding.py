"""What joint-embedding predictive architectures share (Assran et al. 2023, I-JEPA, arXiv 2301.08243)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.multiblock import BlockMasks, MultiBlockSampler
from mim_jax.masking.token_mask import take_tokens
from mim_jax.models import predictor, vit
from mim_jax.models.ema import copy_tree, linear_momentum, move_teacher
from mim_jax.targets.features import normalized_features

Ids = tuple[jax.Array, ...]


class JointEmbedding(Objective):
    """A context encoder, its EMA copy that sees the intact image, and a predictor from the one to the other.

    A method says in its `loss` what is predicted from what, out of the parts below. The teacher's momentum rises
    linearly from `ema_momentum` to 1 over the run.
    """

    encoder_collection = "teacher"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 at 224."""
        model = vit.default_config()
        model.update(class_token=False, pool="mean", init_scheme="normal")
        blocks = dict(
            num_targets=4,  # target blocks per image
            target_scale=(0.15, 0.2),
            target_aspect=(0.75, 1.5),
            context_scale=(0.85, 1.0),
            context_share=0.26,  # context tokens kept per image, as a share of the grid
            truncation="first",  # which tokens of a longer list stay: the "first" (official) or "random" ones
        )
        return ConfigDict(
            dict(
                model=model,
                predictor=predictor.default_config(),
                blocks=blocks,
                ema_momentum=0.996,
                ema_stretch=1.0,  # the official ipe_scale: > 1 stretches the momentum schedule beyond the run
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = vit.build(config)
        self.predictor = predictor.build(config, self.encoder)
        self.sampler = MultiBlockSampler(grid=self.encoder.grid, **config.blocks)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "predictor"}, "teacher": {"encoder"}}`; the teacher starts as a copy."""
        encoder_rng, predictor_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        masks = self.sampler(rng, 1)
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, ids_keep=masks.context[0])
        params = self.predictor.init(predictor_rng, latent, masks.context, masks.targets)["params"]
        encoder = encoder["params"]
        return {"params": {"encoder": encoder, "predictor": params}, "teacher": {"encoder": copy_tree(encoder)}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> BlockMasks:
        """Context and target blocks; block sizes are shared by the batch."""
        del variables, clock
        return self.sampler(rng, batch["image"].shape[0])

    def update(self, variables: Variables, clock: Clock) -> Variables:
        """`teacher <- m * teacher + (1 - m) * params`, `m` linear in progress from `ema_momentum` to 1."""
        momentum = linear_momentum(clock.progress / self.config.ema_stretch, self.config.ema_momentum)
        return move_teacher(variables, momentum)

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images from the teacher, as the paper evaluates; `pooled` is the mean over patches."""
        return self.encoder.split(self.encoder.apply({"params": variables["teacher"]["encoder"]}, images))

    def _encode_intact(self, variables: Variables, images: jax.Array) -> jax.Array:
        """The teacher's latents of intact images, normalised without affine parameters: `[B, N, D]` float32."""
        latent = self.encoder.apply({"params": variables["teacher"]["encoder"]}, images)
        # The official code normalises with PyTorch's default epsilon, 1e-5; its networks use 1e-6.
        return normalized_features(latent, epsilon=1e-5)

    def _encode_contexts(
        self, variables: Variables, images: jax.Array, context_ids: Ids, rng: jax.Array | None
    ) -> jax.Array:
        """The context encoder's latents `[E*B, Kc, D]`, the E contexts stacked on the batch axis; one pass for all."""
        return self.encoder.apply(
            {"params": variables["params"]["encoder"]},
            jnp.tile(images, (len(context_ids), 1, 1, 1)),
            ids_keep=jnp.concatenate(context_ids),
            **drop_path_rngs(rng),
        )

    def _compare(
        self, variables: Variables, context: jax.Array, target: jax.Array, context_ids: Ids, target_ids: Ids
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Smooth-L1 (beta 1) between what is predicted from `context [E*B, Kc, D]` and `target [T, B, Kp, D]`.

        The mean over all elements, without a gradient for the target. `aux["prediction"]` and `aux["target"]` are
        `[T*E*B, Kp, D]`: target block major, then context, then image.
        """
        prediction = self.predictor.apply(
            {"params": variables["params"]["predictor"]}, context, context_ids, target_ids
        )
        target = jax.lax.stop_gradient(target[:, None])
        loss = optax.losses.huber_loss(prediction, target, delta=1.0).mean()
        rows = {"prediction": prediction, "target": jnp.broadcast_to(target, prediction.shape)}
        rows = {name: x.reshape(-1, *x.shape[3:]) for name, x in rows.items()}
        return loss, {"terms": {"prediction": loss}, **rows}


def take_blocks(tokens: jax.Array, target_ids: Ids) -> jax.Array:
    """The tokens of every target block, `[T, B, Kp, D]`, of `tokens [B, N, D]`."""
    return jnp.stack([take_tokens(tokens, ids) for ids in target_ids])
