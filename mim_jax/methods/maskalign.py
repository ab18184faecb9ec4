"""MaskAlign: "Stare at What You See: Masked Image Modeling without Reconstruction", Xue et al., CVPR 2023.

arXiv 2211.08887. Official code: OpenDriveLab/maskalign.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.attentive import attentive_mask
from mim_jax.masking.token_mask import TokenMask, num_kept
from mim_jax.models import teachers, vit
from mim_jax.models.dynamic_alignment import ADAPTERS, FUSIONS, DynamicAlignment
from mim_jax.targets.alignment import DISTANCES, NORMALIZATIONS, distance, level_weights, normalize_target

_CHOICES = {
    "masking": ("attention", "random"),
    "fusion": FUSIONS,
    "adapter": ADAPTERS,
    "target_norm": NORMALIZATIONS,
    "distance": DISTANCES,
}


class MaskAlign(Objective):
    """The student sees some patches, a frozen teacher all; where both see, their features agree at several depths.

    There is no decoder and no mask token. A learned matrix mixes the outputs of the student's blocks for each of the
    teacher's, one dense layer each maps them to its width, and smooth L1 compares them with the teacher's normalised
    tokens, the class token included. What is visible is drawn in proportion to the teacher's attention, which with the
    published teachers needs the intact image once, about as much work as the student's step on 30 % of it.

    Levels of weight 0 are not computed. What the official model has and never trains, their adapters and the encoder's
    final norm, which no loss reads, is kept in `teacher/untrained`: there no weight decay reaches it, just as PyTorch's
    AdamW passes over parameters without a gradient. Whoever takes the encoder trains a norm of their own.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 with CLIP ViT-B/16."""
        config = ConfigDict(
            dict(
                model=vit.default_config(),
                mask_ratio=0.7,  # 0: the student sees all, and this is feature distillation
                masking="attention",  # what is visible: drawn in proportion to the teacher's "attention", or "random"
                fusion="linear",  # of the student's blocks: "linear", "sum" (any depths) or "simple" (none)
                adapter="linear",  # "linear", "norm_linear", "mlp" or "mlp2"
                target_norm="whiten",  # "whiten", "l2", "bn" or "none"; see `targets.alignment`
                distance="smooth_l1",  # twice the usual one, as in the official code; or "l2", "l1"
                level_weights="top5",  # "mean", "out", "top<k>", "mid<i>" or "linear_decay"
            )
        )
        config.teacher = teachers.section("clip_vit_b16")
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        for key, choices in _CHOICES.items():
            if config[key] not in choices:
                raise ConfigError(f"{key} is {config[key]!r}; choose one of {', '.join(choices)}.")
        self.encoder = vit.build(config)
        if self.encoder.relative_bias:
            raise ConfigError("model.relative_bias is True; it needs all patches, but the student drops some.")
        self.num_keep = num_kept(self.encoder.num_patches, config.mask_ratio, may_keep_all=True)
        self.teacher = teachers.build(config.teacher, config)
        self.teachers = {"teacher": self.teacher}
        self._check_teacher()
        depth = self.teacher.encoder.depth
        weights = level_weights(config.level_weights, depth)
        self.levels = tuple(level for level, weight in enumerate(weights, 1) if weight > 0.0)
        self.weights = tuple(weights[level - 1] for level in self.levels)
        self.alignment = DynamicAlignment(
            num_levels=depth,
            width=self.teacher.encoder.width,
            levels=self.levels,
            fusion=config.fusion,
            adapter=config.adapter,
            init_scheme=self.encoder.init_scheme,
            compute=self.encoder.compute,
        )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `alignment`; `teacher`: `teacher`, `untrained` (`norm`, `adapters`)."""
        encoder_rng, alignment_rng, teacher_rng = jax.random.split(rng, 3)
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        encoder = dict(self.encoder.init(encoder_rng, images)["params"])
        layers = jnp.zeros((self.encoder.depth, 1, 1, self.encoder.width), jnp.float32)
        every = self.alignment.clone(levels=tuple(range(1, self.alignment.num_levels + 1)))
        alignment = every.init(alignment_rng, layers)["params"]
        used = {"mixing", *(f"level{level}" for level in self.levels)}
        untrained = {
            "norm": encoder.pop("norm"),
            "adapters": {name: leaves for name, leaves in alignment.items() if name not in used},
        }
        return {
            "params": {"encoder": encoder, "alignment": {k: v for k, v in alignment.items() if k in used}},
            "teacher": {"teacher": self.teacher.init(teacher_rng), "untrained": untrained},
        }

    def prepare(self, variables: Variables, batch: Batch) -> Batch:
        """With attentive masking, `batch["taught"]`: what masks and loss both ask the teacher for."""
        if self.config.masking == "random":
            return batch
        return {**batch, "taught": self.taught(variables, batch)}

    def teach(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The teacher's `layers [B, levels, 1 + N, C]`, and with attentive masking its `importance [B, N]`."""
        params = variables["teacher"]["teacher"]
        features = self.teacher(params, batch["image"])
        taught = {"layers": jnp.stack([features.layers[level - 1] for level in self.levels], axis=1)}
        if self.config.masking == "attention":
            taught["importance"] = self.teacher.class_attention(params, features).mean(axis=1)
        return taught

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """The patches to hide: all but those drawn by the teacher's attention, or by lot."""
        del clock
        if self.config.masking == "random":
            shape = (batch["image"].shape[0], self.encoder.num_patches)
            return TokenMask.from_noise(jax.random.uniform(rng, shape, jnp.float32), self.num_keep)
        return attentive_mask(rng, self.taught(variables, batch)["importance"], self.num_keep)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """The weighted sum over levels of distances, each the mean over batch, tokens and channels.

        `aux["terms"]["alignment"]` is the same number and `aux["metrics"]` has every level's. `aux["prediction"]` and
        `aux["target"]` are `[B, levels, 1 + K, C]`, the class token first, then the visible ones in the order of
        `masks.ids_keep`; `aux["latent"]` is the last block's output.
        """
        del clock
        params = variables["params"]
        target = self._target(self.taught(variables, batch)["layers"], masks)
        latent, layers = self.encoder.clone(final_norm=False).apply(
            {"params": params["encoder"]},
            batch["image"],
            ids_keep=masks.ids_keep,
            return_layers=True,
            **drop_path_rngs(rng),
        )
        prediction = self.alignment.apply({"params": params["alignment"]}, layers)
        distances = distance(prediction, target, self.config.distance).mean(axis=(0, 2, 3))
        loss = (jnp.asarray(self.weights, jnp.float32) * distances).sum()
        return loss, {
            "terms": {"alignment": loss},
            "metrics": {f"level{level}": distances[i] for i, level in enumerate(self.levels)},
            "prediction": prediction,
            "target": target,
            "latent": latent,
        }

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images after the final norm, which has never been trained."""
        params = {**variables["params"]["encoder"], "norm": variables["teacher"]["untrained"]["norm"]}
        return self.encoder.split(self.encoder.apply({"params": params}, images))

    def _target(self, layers: jax.Array, masks: TokenMask) -> jax.Array:
        """Of the teacher's `layers` the class token and the visible patches, normalised: `[B, levels, 1 + K, C]`."""
        if self.config.target_norm == "bn":  # whose statistics are those of all tokens, for every level by itself
            layers = jax.vmap(lambda x: normalize_target(x, "bn"), in_axes=1, out_axes=1)(layers)
        prefix = int(self.encoder.class_token)
        patches = jnp.take_along_axis(layers[:, :, prefix:], masks.ids_keep[:, None, :, None], axis=2)
        tokens = jnp.concatenate([layers[:, :, :prefix], patches], axis=2)
        return tokens if self.config.target_norm == "bn" else normalize_target(tokens, self.config.target_norm)

    def _check_teacher(self) -> None:
        ours, theirs = self.encoder, self.teacher.encoder
        teachers.check_same_tokens(theirs, ours)
        if self.config.masking == "attention":
            self.teacher.check_class_attention()
        if self.config.fusion != "sum" and theirs.depth != ours.depth:
            raise ConfigError(
                f"fusion is {self.config.fusion!r}, which pairs the student's {ours.depth} blocks with the teacher's "
                f"{theirs.depth}; choose 'sum'."
            )
