"""MixedAE: "Mixed Autoencoder for Self-supervised Visual Representation Learning".

Chen et al., CVPR 2023, arXiv 2303.17152. No official code has been released.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.homologous import homologous_contrast, keep_homologous, keep_top_k
from mim_jax.masking.mixed import MixedMask, check_groups, join_groups, part_groups, random_owners
from mim_jax.models import pixel_decoder, vit
from mim_jax.targets.pixels import masked_mean, masked_pictures, patch_statistics, pixel_target

ATTENTIONS = ("top_k", "all", "oracle")


class MixedAE(Objective):
    """Mixes `group_size` images patch by patch, encodes the mixed image and reconstructs each source from its own part.

    A mixed image costs the encoder as much as its sources cost MAE at mask ratio `1 - 1 / group_size`; what it costs
    more is attention over all of its tokens and the search for each row's top k, for which the logits are written out.
    Tokens are encoded image after image: with positions added, a transformer does not see their order, and un-mixing
    becomes a reshape.

    From the abstract and introduction: mixing, homologous attention by top-K, the contrastive loss, segment embeddings,
    an overhead of about 3 %. The numbers (K, temperature, weight, all blocks) and what the paper's text did not tell us
    (how owners are drawn, means in the contrastive loss, the class token outside K, how segments are initialised) are
    sensible readings, most of them fields below. The mode that encodes `group_size` mixed images per group is not
    offered.

    Segments that start far smaller than the positions (0.02 beside sin-cos tables of 0.7) leave the contrast at chance,
    `log(N - 1)`, for hundreds of steps, in which all tokens grow alike; from 0.5 on it falls at once.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16, groups of four."""
        homologous = dict(
            attention="top_k",  # "oracle" restricts it to the own image instead (an upper bound), "all" to nothing
            keep=optional(int),  # keys a query keeps beside the class token; None: as many as it has homologous ones
            blocks=optional(tuple),  # encoder blocks, from 0, that restrict their attention; None: all
        )
        return ConfigDict(
            dict(
                model=vit.default_config(),
                decoder=pixel_decoder.default_config(),
                group_size=4,  # images in a mixed one; 1 / mixing ratio
                homologous=homologous,
                segment_std=0.02,  # initial standard deviation of the segment embeddings
                contrast_weight=0.1,
                contrast_temperature=0.25,
                norm_pix_loss=True,
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = vit.build(config)
        self.decoder = pixel_decoder.build(config, self.encoder)
        self._check()
        self.count = self.encoder.num_patches // config.group_size

    def _check(self) -> None:
        config, num_patches = self.config, self.encoder.num_patches
        if config.group_size < 2 or num_patches % config.group_size or num_patches == config.group_size:
            raise ConfigError(
                f"group_size is {config.group_size}; it must be at least 2, and each image of a group must own the "
                f"same number of the {num_patches} patches, at least 2."
            )
        check_groups(config.batch_size, config.group_size, config.accumulation_steps)
        if config.contrast_temperature <= 0.0:
            raise ConfigError(f"contrast_temperature is {config.contrast_temperature}; it must be positive.")
        homologous = config.homologous
        if homologous.attention not in ATTENTIONS:
            raise ConfigError(
                f"homologous.attention is {homologous.attention!r}; choose one of {', '.join(ATTENTIONS)}."
            )
        if homologous.keep is not None and not 1 <= homologous.keep <= num_patches:
            raise ConfigError(f"homologous.keep is {homologous.keep}; it must lie between 1 and {num_patches} patches.")
        wrong = [block for block in homologous.blocks or () if block not in range(self.encoder.depth)]
        if wrong:
            raise ConfigError(
                f"homologous.blocks names block {wrong[0]!r}; the encoder has blocks 0 to {self.encoder.depth - 1}."
            )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder", "segment"}}`; the encoder is a plain ViT."""
        encoder_rng, decoder_rng, segment_rng = jax.random.split(rng, 3)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        group = MixedMask.from_owners(
            random_owners(rng, 1, self.encoder.num_patches, self.config.group_size), self.config.group_size
        )
        mask = jax.tree.map(lambda x: x[:1], group.owned)
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, ids_keep=mask.ids_keep)
        decoder = self.decoder.init(decoder_rng, latent, mask)
        shape = (self.config.group_size, self.encoder.width)
        segment = nn.initializers.normal(self.config.segment_std)(segment_rng, shape, jnp.float32)
        return {
            "params": {
                "encoder": encoder["params"],
                "decoder": decoder["params"],
                "segment": {"embedding": segment},
            }
        }

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> MixedMask:
        """Every patch of a mixed image from a random member of the group, from each equally many."""
        del variables, clock
        batch_size, group_size = batch["image"].shape[0], self.config.group_size
        check_groups(batch_size, group_size)
        owners = random_owners(rng, batch_size // group_size, self.encoder.num_patches, group_size)
        return MixedMask.from_owners(owners, group_size)

    def loss(self, variables: Variables, batch: Batch, masks: MixedMask, rng: jax.Array, clock: Clock):
        """`terms`: `reconstruction`, MAE's loss over the patches an image does not own, and `homologous`, the contrast.

        `aux["latent"]` is un-mixed: `[B, (1 +) N / g, D]`, the class token being that of the mixed image;
        `aux["pooled"]` has one row, `[B / g, D]`, for each mixed image.
        """
        del clock
        check_groups(batch["image"].shape[0], self.config.group_size)
        mixed, latent, prediction = self._forward(variables, batch["image"], masks, rng)
        target = pixel_target(batch["image"], self.encoder.patch_size, self.config.norm_pix_loss)
        reconstruction = masked_mean(jnp.square(prediction - target).mean(axis=-1), masks.owned.mask)
        patches = mixed[:, int(self.encoder.class_token) :]
        homologous = homologous_contrast(patches, self.config.group_size, self.config.contrast_temperature)
        return reconstruction + self.config.contrast_weight * homologous, {
            "terms": {"reconstruction": reconstruction, "homologous": homologous},
            "prediction": prediction,
            "target": target,
            "latent": latent,
            "pooled": self.encoder.split(mixed)["pooled"],
        }

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images with ordinary attention; `pooled` is the class token after the final norm."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))

    def reconstruct(self, variables: Variables, batch: Batch, masks: MixedMask) -> dict[str, jax.Array]:
        """`masked` is the mixed image of the group; `reconstruction` completes each image's own part of it.

        With `norm_pix_loss` the mean and contrast of each patch are the true ones, as in MAE's figures.
        """
        check_groups(batch["image"].shape[0], self.config.group_size)
        _, _, prediction = self._forward(variables, batch["image"], masks, None)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(pixel_target(batch["image"], self.encoder.patch_size, False))
            prediction = prediction * deviation + mean
        pictures = masked_pictures(batch["image"], prediction, masks.owned.mask, self.encoder.patch_size)
        own, size = pictures["masked"], self.config.group_size
        mixed = own.reshape(size, own.shape[0] // size, *own.shape[1:]).sum(axis=0)
        return {**pictures, "masked": jnp.tile(mixed, (size, 1, 1, 1))}

    def _forward(self, variables: Variables, images: jax.Array, masks: MixedMask, rng: jax.Array | None):
        """Encoded mixed images `[B/g, (1 +) N, D]`, the latent of each image, and its prediction `[B, N, p*p*C]`."""
        params, size = variables["params"], self.config.group_size
        segment = params["segment"]["embedding"][masks.segment][:, None]
        mixed = self.encoder.apply(
            {"params": params["encoder"]},
            images,
            ids_keep=masks.owned.ids_keep,
            arrange=lambda x: join_groups(x + segment.astype(x.dtype), size),
            edit=self._attention_edit(),
            **drop_path_rngs(rng),
        )
        prefix = int(self.encoder.class_token)
        class_token = jnp.tile(mixed[:, :prefix], (size, 1, 1))
        latent = jnp.concatenate([class_token, part_groups(mixed[:, prefix:], size)], axis=1)
        return mixed, latent, self.decoder.apply({"params": params["decoder"]}, latent, masks.owned)

    def _attention_edit(self) -> Partial | None:
        homologous, prefix = self.config.homologous, int(self.encoder.class_token)
        if homologous.attention == "all":
            return None
        if homologous.attention == "oracle":
            restrict = functools.partial(keep_homologous, count=self.count, prefix=prefix)
        else:
            keep = self.count if homologous.keep is None else homologous.keep
            restrict = functools.partial(keep_top_k, k=keep, prefix=prefix)
        if homologous.blocks is None:
            return Partial(lambda logits, x, layer: (restrict(logits), None))
        chosen = jnp.asarray([block in homologous.blocks for block in range(self.encoder.depth)])

        def edit(chosen, logits, x, layer):
            return jnp.where(chosen[layer], restrict(logits), logits), None

        return Partial(edit, chosen)
