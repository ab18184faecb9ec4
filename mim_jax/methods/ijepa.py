"""I-JEPA: "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture".

Assran et al., CVPR 2023, arXiv 2301.08243.
"""

from __future__ import annotations

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


class IJEPA(Objective):
    """From one context, predicts what an EMA copy of the encoder says about several target blocks of the intact image.

    The loss is smooth-L1 in latent space (the official code; the paper writes L2), on targets normalised without affine
    parameters. The teacher's momentum rises linearly from `ema_momentum` to 1 over the run.
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

    def loss(self, variables: Variables, batch: Batch, masks: BlockMasks, rng: jax.Array, clock: Clock):
        """Smooth-L1 (beta 1) between predicted and target latents, mean over all elements.

        `aux["prediction"]` and `aux["target"]` are `[T*E*B, Kp, D]`: target block major, then context, then image.
        """
        del clock
        context_ids, target_ids = (tuple(ids) for ids in masks)
        target = self._targets(variables, batch["image"], target_ids)
        encoder = {"params": variables["params"]["encoder"]}
        # Contexts are stacked on the batch axis, so that one pass encodes them all.
        images = jnp.tile(batch["image"], (len(context_ids), 1, 1, 1))
        latent = self.encoder.apply(
            encoder,
            images,
            ids_keep=jnp.concatenate(context_ids),
            **drop_path_rngs(rng),
        )
        prediction = self.predictor.apply({"params": variables["params"]["predictor"]}, latent, context_ids, target_ids)
        loss = optax.losses.huber_loss(prediction, target, delta=1.0).mean()
        rows = {"prediction": prediction, "target": jnp.broadcast_to(target, prediction.shape)}
        rows = {name: x.reshape(-1, *x.shape[3:]) for name, x in rows.items()}
        return loss, {"terms": {"prediction": loss}, **rows, "latent": latent}

    def update(self, variables: Variables, clock: Clock) -> Variables:
        """`teacher <- m * teacher + (1 - m) * encoder`, `m` linear in progress from `ema_momentum` to 1."""
        momentum = linear_momentum(clock.progress / self.config.ema_stretch, self.config.ema_momentum)
        return move_teacher(variables, momentum)

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images from the teacher, as the paper evaluates; `pooled` is the mean over patches."""
        return self.encoder.split(self.encoder.apply({"params": variables["teacher"]["encoder"]}, images))

    def _targets(self, variables: Variables, images: jax.Array, target_ids: tuple[jax.Array, ...]) -> jax.Array:
        """`[T, 1, B, Kp, D]`."""
        latent = self.encoder.apply({"params": variables["teacher"]["encoder"]}, images).astype(jnp.float32)
        # The official code normalises with PyTorch's default epsilon, 1e-5; its networks use 1e-6.
        latent = jax.nn.standardize(latent, axis=-1, epsilon=1e-5)
        return jax.lax.stop_gradient(jnp.stack([take_tokens(latent, ids) for ids in target_ids])[:, None])
