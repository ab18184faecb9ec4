"""What the methods have in common that predict masked tubes of a clip, or masked patches of an image, from the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.multiblock3d import ClipMask, MultiBlock3DSampler
from mim_jax.masking.token_mask import take_tokens
from mim_jax.models import video_vit
from mim_jax.models.tube_predictor import TubePredictor


class ClipEncoder(Objective):
    """An encoder of clips, `video [B, T, H, W, C]`, or of images where `num_frames` is 1; nothing that trains it."""

    @classmethod
    def default_config(cls) -> ConfigDict:
        """A ViT-B/16 for images."""
        return ConfigDict(dict(num_frames=1, model=video_vit.default_config()))

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = video_vit.build(config)

    @property
    def input_name(self) -> str:
        """The batch's key of what is encoded."""
        return "image" if self.config.num_frames == 1 else "video"

    def batch_spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """`image`, or `video` where there is more than one frame."""
        image = super().batch_spec(batch_size)["image"]
        if self.input_name == "image":
            return {"image": image}
        batch, *frame = image.shape
        return {"video": jax.ShapeDtypeStruct((batch, self.config.num_frames, *frame), image.dtype)}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder"}}`."""
        clips = jnp.zeros((1, *batch[self.input_name].shape[1:]), jnp.float32)
        encoder = self.encoder.init(rng, clips, ids_keep=jnp.zeros((1, 1), jnp.int32))
        return {"params": {"encoder": encoder["params"]}}

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact clips or images; `pooled` is the mean over tokens.

        An encoder of clips also takes images `[B, H, W, C]`, which it sees as clips that stand still.
        """
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))


class MaskedClips(ClipEncoder):
    """Encodes the context that several kinds of multi-block masks leave; a predictor regresses what is at the targets.

    Each kind has a pass of its own through both. A method adds what is predicted, and `predictor`.
    """

    #: Name of the predictor's config section and of its parameters.
    predictor_name = "predictor"
    predictor: TubePredictor

    @classmethod
    def default_config(cls) -> ConfigDict:
        """V-JEPA's two kinds of masks, short-range and long-range."""
        config = super().default_config()
        config.blocks = dict(
            num_blocks=(8, 2),  # per clip, for each kind of mask
            scale=(0.15, 0.7),  # share of a frame that a block of each kind covers
            aspect=(0.75, 1.5),  # height over width is drawn from this range
            temporal_scale=(1.0, 1.0),  # share of the frames that a block goes through, likewise
            # Slots for tokens, as shares of the grid: for each kind what the official code leaves on average in batches
            # of four on an 8x14x14 grid, by the shortest list of which it cuts all others.
            context_share=(0.3, 0.12),
            target_share=(0.55, 0.75),
            truncation="first",  # which tokens of a longer list stay: the "first" (official) or "random" ones
        )
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.samplers = self._build_samplers()

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", <predictor_name>}}`."""
        encoder_rng, predictor_rng = jax.random.split(rng)
        params = super().init(encoder_rng, batch)["params"]
        latent, ids = jnp.zeros((1, 1, self.encoder.width), jnp.float32), jnp.zeros((1, 1), jnp.int32)
        predictor = self.predictor.init(predictor_rng, latent, ClipMask(ids, ids), 0)
        return {"params": {**params, self.predictor_name: predictor["params"]}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> tuple[ClipMask, ...]:
        """A mask of each kind for each clip. By hand: any sequence of `ClipMask`s, one for each kind."""
        del variables, clock
        batch_size = batch[self.input_name].shape[0]
        rngs = jax.random.split(rng, len(self.samplers))
        return tuple(sampler(rng, batch_size) for sampler, rng in zip(self.samplers, rngs, strict=True))

    def _regress(
        self,
        variables: Variables,
        clips: jax.Array,
        target: jax.Array,
        masks: Sequence[ClipMask],
        rng: jax.Array | None,
        distance: Callable[[jax.Array], jax.Array],
        term: str,
    ):
        """Loss and `aux` of predicting `target [B, N, P]` at the targets of each mask.

        The loss is the mean of `distance` over the elements of a clip, then over clips, then over kinds of masks.
        `aux["prediction"]` and `aux["target"]` are tuples of `[B, Kp, P]`, one for each kind, `aux["latent"]` of
        `[B, Kc, D]`; slots that are not in use hold nothing of interest.
        """
        latents, predictions = self._predict(variables, clips, masks, rng)
        targets = tuple(take_tokens(target, mask.targets) for mask in masks)
        losses = [
            _mean_over_valid(distance(prediction - wanted).mean(axis=-1), mask.targets_valid)
            for prediction, wanted, mask in zip(predictions, targets, masks, strict=True)
        ]
        loss = jnp.stack(losses).mean()
        return loss, {
            "terms": {term: loss},
            "metrics": {f"{term}_{kind}": value for kind, value in enumerate(losses)},
            "prediction": predictions,
            "target": targets,
            "latent": latents,
        }

    def _predict(self, variables: Variables, clips: jax.Array, masks: Sequence[ClipMask], rng: jax.Array | None):
        """Latents of the contexts and predictions at the targets, a tuple of each; no drop path without `rng`."""
        params = variables["params"]
        rngs = [None] * len(masks) if rng is None else jax.random.split(rng, len(masks))
        latents, predictions = [], []
        for kind, (mask, kind_rng) in enumerate(zip(masks, rngs, strict=True)):
            latent = self.encoder.apply(
                {"params": params["encoder"]},
                clips,
                ids_keep=mask.context,
                valid=mask.context_valid,
                **drop_path_rngs(kind_rng),
            )
            latents.append(latent)
            predictions.append(self.predictor.apply({"params": params[self.predictor_name]}, latent, mask, kind))
        return tuple(latents), tuple(predictions)

    def _build_samplers(self) -> tuple[MultiBlock3DSampler, ...]:
        blocks = self.config.blocks
        per_kind = ("num_blocks", "scale", "context_share", "target_share")
        lengths = {len(blocks[key]) for key in per_kind}
        if len(lengths) != 1 or not blocks.num_blocks:
            raise ConfigError(
                f"blocks.{', blocks.'.join(per_kind)} have a number for each kind of mask, so they must be equally "
                "long; change the shorter ones."
            )
        return tuple(
            MultiBlock3DSampler(
                grid=self.encoder.tube_grid,
                num_blocks=num_blocks,
                scale=(scale, scale),
                aspect=blocks.aspect,
                temporal_scale=blocks.temporal_scale,
                context_share=context_share,
                target_share=target_share,
                truncation=blocks.truncation,
            )
            for num_blocks, scale, context_share, target_share in zip(*(blocks[key] for key in per_kind), strict=True)
        )


def _mean_over_valid(per_token: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Mean of `per_token [B, K]` over the tokens of a clip where `valid`, then over clips."""
    if valid is None:
        return per_token.mean()
    weight = valid.astype(jnp.float32)
    return ((per_token * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)).mean()
