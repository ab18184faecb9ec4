"""DMT-JEPA: "Discriminative Masked Targets for Joint-Embedding Predictive Architecture".

Mo and Yun, 2024, arXiv 2405.17995.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.masking.multiblock import BlockMasks
from mim_jax.masking.token_mask import take_tokens
from mim_jax.models import neighborhood_head
from mim_jax.models.ema import copy_tree
from mim_jax.models.joint_embedding import Ids, JointEmbedding
from mim_jax.targets.neighbors import neighbor_table, similar_neighbors


class DMTJEPA(JointEmbedding):
    """I-JEPA whose targets are aggregates of the neighbours most similar to a patch, by cross-attention.

    The head that makes targets is the EMA copy of one that refines the context before the predictor. Its final norm is
    affine, so that unlike I-JEPA's the targets' scale can drift. The patch itself only chooses its neighbours: what
    asks them is the mean of its image's tokens; or with `head.query_image="official"`, for parity, those of the images
    of the batch in turn, as the official code does with the batch of a device. Aggregates are made for target patches
    alone.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 at 224."""
        config = super().default_config()
        config.head = neighborhood_head.default_config()
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.head = neighborhood_head.build(config, self.encoder)
        self.table = neighbor_table(self.encoder.grid, config.head.window)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "predictor", "head"}, "teacher": {"encoder", "head"}}`; the teacher is a copy."""
        variables = super().init(rng, batch)
        context = jnp.zeros((1, self.sampler.context_tokens, self.encoder.width), jnp.float32)
        head = self.head.init(jax.random.fold_in(rng, 2), context)["params"]
        return {
            "params": {**variables["params"], "head": head},
            "teacher": {**variables["teacher"], "head": copy_tree(head)},
        }

    def loss(self, variables: Variables, batch: Batch, masks: BlockMasks, rng: jax.Array, clock: Clock):
        """Smooth-L1 (beta 1) between what is predicted from refined contexts and the aggregates, mean over elements.

        `aux["prediction"]` and `aux["target"]` are `[T*E*B, Kp, D]`: target block major, then context, then image.
        `aux["latent"]` is the encoder's, before it is refined.
        """
        del clock
        context_ids, target_ids = (tuple(ids) for ids in masks)
        target = self._aggregate(variables, self._encode_intact(variables, batch["image"]), target_ids)
        latent = self._encode_contexts(variables, batch["image"], context_ids, rng)
        refined = self.head.apply({"params": variables["params"]["head"]}, latent)
        loss, aux = self._compare(variables, refined, target, context_ids, target_ids)
        return loss, {**aux, "latent": latent}

    def _aggregate(self, variables: Variables, latent: jax.Array, target_ids: Ids) -> jax.Array:
        """The targets `[T, B, Kp, D]` from the teacher's normalised latents `[B, N, D]`, by its head."""
        batch, _, width = latent.shape
        ids = jnp.stack(target_ids, axis=1)  # [B, T, Kp]
        patches = ids.reshape(batch, -1)
        similar = take_tokens(similar_neighbors(latent, self.table, self.config.head.neighbors), patches)
        neighbors = take_tokens(latent, similar.reshape(batch, -1)).reshape(-1, similar.shape[-1], width)
        query = self._queries(latent.mean(axis=1), patches).reshape(-1, 1, width)
        target = self.head.apply({"params": variables["teacher"]["head"]}, query, neighbors)
        return jnp.moveaxis(target.reshape(*ids.shape, width), 0, 1)

    def _queries(self, means: jax.Array, patches: jax.Array) -> jax.Array:
        """What asks for each of `patches [B, M]`, `[B, M, D]`: the mean token of an image out of `means [B, D]`."""
        batch = means.shape[0]
        if self.config.head.query_image == "own":
            return jnp.broadcast_to(means[:, None], (*patches.shape, means.shape[-1]))
        # The official stack of all patches is image major, but the means are repeated as a whole.
        row = jnp.arange(batch, dtype=jnp.int32)[:, None] * self.encoder.num_patches + patches
        return means[row % batch]
