"""LUT: "Learning with Unmasked Tokens Drives Stronger Vision Learners", Kim et al., ECCV 2024, arXiv 2310.13593."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.batch_norm import Statistics, initial_statistics
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.unit import unit
from mim_jax.masking.disjoint import DisjointMasks, check_disjoint, random_disjoint_masks
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models.ema import copy_tree, cosine_momentum, ema
from mim_jax.models.masked_autoencoder import MaskedAutoencoder
from mim_jax.models.projection_head import ProjectionHead


class LUT(MaskedAutoencoder):
    """MAE on one view; and the mean visible token of each view predicts the other view's mean token of an EMA teacher.

    `batch["image"]` is view 1, which is reconstructed; `batch["view2"]` is another crop, more strongly augmented. The
    student sees disjoint quarters of the two grids, the teacher both views whole: per image and step the encoder passes
    over 2 x 25 % of the tokens with gradients and over 2 x 100 % without.

    BatchNorm in projector and predictor normalises each view by itself, over the global (micro-)batch, and moves the
    running statistics twice a step, view 1 first. The teacher normalises by its own averaged copy of them. The official
    momentum counts batches, not updates, so with accumulation it is ahead of this one by a fraction of an update.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 as the official command runs it."""
        config = super().default_config()
        config.update(
            projector=dict(hidden=4096),  # of the projector and the predictor alike
            bc_weight=0.25,  # of the broader contextualisation; the official parser's own default is 0.1
            ema_momentum=0.996,  # at first; 1 at the end, along half a cosine
        )
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        check_disjoint(self.encoder.num_patches, self.num_keep)
        if config.projector.hidden < 1:
            raise ConfigError(f"projector.hidden is {config.projector.hidden}; it must be at least 1.")
        self.head = ProjectionHead(config.projector.hidden, self.encoder.width, self.encoder.compute)

    def batch_spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Two views of each image: `image` and `view2`."""
        spec = super().batch_spec(batch_size)
        return {**spec, "view2": spec["image"]}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `decoder`, `projector`, `predictor`; the teacher and the statistics start as copies."""
        mae_rng, projector_rng, predictor_rng = jax.random.split(rng, 3)
        params = super().init(mae_rng, batch)["params"]
        statistics = initial_statistics(self.config.projector.hidden)
        pooled = jnp.zeros((1, self.encoder.width), jnp.float32)
        for name, head_rng in (("projector", projector_rng), ("predictor", predictor_rng)):
            params[name] = self.head.init(head_rng, pooled, statistics, train=False)["params"]
        state = {"projector_statistics": statistics, "predictor_statistics": copy_tree(statistics)}
        teacher = {name: copy_tree(params[name]) for name in ("encoder", "projector")}
        teacher["projector_statistics"] = copy_tree(statistics)
        return {"params": params, "teacher": teacher, "state": state}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> DisjointMasks:
        """Disjoint sets of visible patches for the two views, from one noise."""
        del variables, clock
        return random_disjoint_masks(rng, batch["image"].shape[0], self.encoder.num_patches, self.num_keep)

    def loss(self, variables: Variables, batch: Batch, masks: DisjointMasks, rng: jax.Array, clock: Clock):
        """`mae + bc_weight * bc`; `bc` is the mean over both directions of `2 - 2 cos(prediction, target)`.

        Of a `TokenMask`, view 2 keeps the tokens that follow those of view 1, as in `DisjointMasks.from_first`.
        """
        masks = _of_both_views(masks)
        mae, aux = super().loss(variables, batch, masks.view1, rng, clock)
        second = self.encoder.apply(
            {"params": variables["params"]["encoder"]},
            batch["view2"],
            ids_keep=masks.view2.ids_keep,
            **drop_path_rngs(None if rng is None else jax.random.fold_in(rng, 1)),
        )
        state = variables["state"]
        query1, state = self._query(variables["params"], aux["latent"], state)
        query2, state = self._query(variables["params"], second, state)
        target1, target2 = (self._target(variables["teacher"], batch[view]) for view in ("image", "view2"))
        bc = 0.5 * (_distance(query2, target1) + _distance(query1, target2))
        loss = mae + self.config.bc_weight * bc
        return loss, {**aux, "terms": {"mae": mae, "bc": bc}, "state": state}

    def update(self, variables: Variables, clock: Clock) -> Variables:
        """`teacher <- m * teacher + (1 - m) * student`, running statistics included."""
        student = {name: variables["params"][name] for name in ("encoder", "projector")}
        student["projector_statistics"] = variables["state"]["projector_statistics"]
        momentum = cosine_momentum(clock.progress, self.config.ema_momentum)
        return {**variables, "teacher": ema(variables["teacher"], student, momentum)}

    def reconstruct(self, variables: Variables, batch: Batch, masks: DisjointMasks) -> dict[str, jax.Array]:
        """View 1: hidden patches from the decoder, visible ones from the image."""
        return super().reconstruct(variables, batch, _of_both_views(masks).view1)

    def _pool(self, latent: jax.Array) -> jax.Array:
        """The mean over tokens but the class token, `[B, D]` float32."""
        return latent[:, int(self.encoder.class_token) :].astype(jnp.float32).mean(axis=1)

    def _query(self, params: Variables, latent: jax.Array, state: Variables) -> tuple[jax.Array, Variables]:
        x, state = self._pool(latent), dict(state)
        for name in ("projector", "predictor"):
            statistics: Statistics = state[f"{name}_statistics"]
            x, state[f"{name}_statistics"] = self.head.apply({"params": params[name]}, x, statistics, train=True)
        return x, state

    def _target(self, teacher: Variables, images: jax.Array) -> jax.Array:
        latent = self.encoder.apply({"params": teacher["encoder"]}, images)
        statistics = teacher["projector_statistics"]
        x, _ = self.head.apply({"params": teacher["projector"]}, self._pool(latent), statistics, train=False)
        return jax.lax.stop_gradient(x)


def _of_both_views(masks: DisjointMasks | TokenMask) -> DisjointMasks:
    return DisjointMasks.from_first(masks) if isinstance(masks, TokenMask) else masks


def _distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over the batch of `2 - 2 cos(x, y)`."""
    return 2.0 - 2.0 * (unit(x) * unit(y)).sum(axis=-1).mean()
