"""I-JEPA: "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture".

Assran et al., CVPR 2023, arXiv 2301.08243.
"""

from __future__ import annotations

import jax

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.masking.multiblock import BlockMasks
from mim_jax.models.joint_embedding import JointEmbedding, take_blocks


class IJEPA(JointEmbedding):
    """From one context, predicts what an EMA copy of the encoder says about several target blocks of the intact image.

    The loss is smooth-L1 in latent space (the official code; the paper writes L2), on targets normalised without affine
    parameters. The teacher's momentum rises linearly from `ema_momentum` to 1 over the run.
    """

    def loss(self, variables: Variables, batch: Batch, masks: BlockMasks, rng: jax.Array, clock: Clock):
        """Smooth-L1 (beta 1) between predicted and target latents, mean over all elements.

        `aux["prediction"]` and `aux["target"]` are `[T*E*B, Kp, D]`: target block major, then context, then image.
        """
        del clock
        context_ids, target_ids = (tuple(ids) for ids in masks)
        target = take_blocks(self._encode_intact(variables, batch["image"]), target_ids)
        latent = self._encode_contexts(variables, batch["image"], context_ids, rng)
        loss, aux = self._compare(variables, latent, target, context_ids, target_ids)
        return loss, {**aux, "latent": latent}
