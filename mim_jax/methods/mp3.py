"""MP3: "Position Prediction as an Effective Pretraining Strategy", Zhai et al., ICML 2022, arXiv 2207.07611."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.initializers import find_scheme
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import vit
from mim_jax.targets.pixels import masked_mean


class MP3(Objective):
    """Patches without positions: each is classified by where it comes from, out of all places of the grid.

    All patches ask, in every block; only a random context answers, the same in all blocks, so that a patch outside it
    knows of the context and of itself alone. Nothing else may tell a position: no table, no class token, no relative
    bias. Fine-tuning adds position embeddings, trained from scratch (`model.position="learned"` of the task).

    There is no official code and we could not read the paper itself; the abstract, summaries and two implementations
    that disagree leave open: `mask_ratio` (here the share outside the context; one of the two counts the context),
    whether tokens of the context count in the loss (`loss_on`), the head's start (`zero_head`), and that a context
    holds for all blocks, which one of them draws anew in each.

    Attention costs N times the context instead of N squared; all else is done for all patches, the keys and values of
    the fused projection included (an eighth of the blocks' work).
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 as in the paper."""
        model = vit.default_config()
        model.update(class_token=False, pool="mean", position="none", init_scheme="normal")
        return ConfigDict(
            dict(
                model=model,
                mask_ratio=0.75,  # of the patches, which are outside the context: int(ratio * N)
                loss_on="all",  # "all" patches, or the "masked" ones: those outside the context
                zero_head=False,  # start the classifier at zero instead of a normal with 0.02
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = vit.build(config)
        num_patches = self.encoder.num_patches
        if config.model.class_token:
            raise ConfigError("model.class_token is True; MP3 has no class token, set it to False.")
        if not 0.0 <= config.mask_ratio < 1.0:
            raise ConfigError(f"mask_ratio is {config.mask_ratio}; it must lie in [0, 1).")
        if config.loss_on not in ("all", "masked") or (
            config.loss_on == "masked" and not self._num_masked(num_patches)
        ):
            raise ConfigError(
                f"loss_on is {config.loss_on!r}; choose 'all', or 'masked' with a mask_ratio that masks a patch."
            )
        self.num_context = num_patches - self._num_masked(num_patches)
        scheme = find_scheme(self.encoder.init_scheme)
        self.head = nn.Dense(
            num_patches,
            dtype=self.encoder.compute.jax_dtype,
            kernel_init=nn.initializers.zeros_init() if config.zero_head else scheme.kernel,
        )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "head"}}`."""
        encoder_rng, head_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        latent, encoder = self.encoder.init_with_output(encoder_rng, images)
        head = self.head.init(head_rng, latent)
        return {"params": {"encoder": encoder["params"], "head": head["params"]}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """A uniformly random context for each image: what the mask keeps."""
        del variables, clock
        noise = jax.random.uniform(rng, (batch["image"].shape[0], self.encoder.num_patches), jnp.float32)
        return TokenMask.from_noise(noise, self.num_context)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """Cross-entropy between N places, mean over patches; `aux["prediction"]` are the logits `[B, N, N]`, raster."""
        del clock
        params = variables["params"]
        # The context first, so that it is what all tokens attend to; without positions the order means nothing else.
        latent = self.encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            ids_keep=masks.order,
            num_keys=masks.ids_keep.shape[1],
            **drop_path_rngs(rng),
        )
        logits = self.head.apply({"params": params["head"]}, latent).astype(jnp.float32)
        logits = jnp.take_along_axis(logits, masks.ids_restore[:, :, None], axis=1)
        places = jnp.broadcast_to(jnp.arange(self.encoder.num_patches, dtype=jnp.int32)[None], masks.mask.shape)
        error = optax.softmax_cross_entropy_with_integer_labels(logits, places)
        counted = masks.mask if self.config.loss_on == "masked" else jnp.ones_like(masks.mask)
        loss = masked_mean(error, counted)
        accuracy = masked_mean((logits.argmax(axis=-1) == places).astype(jnp.float32), counted)
        return loss, {
            "terms": {"position": loss},
            "metrics": {"accuracy": accuracy},
            "prediction": logits,
            "target": places,
            "latent": latent,
        }

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images, all patches attending to all; `pooled` is the mean over patches."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))

    def _num_masked(self, num_patches: int) -> int:
        return int(self.config.mask_ratio * num_patches)
