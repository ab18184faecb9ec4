"""Hybrid Distillation: "Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners".

Shi et al., ICLR 2024, arXiv 2306.15876. There is no official code (lygsbw/hybriddistill holds a README), and the paper
was not at hand: what its abstract and its reviews do not say is a sensible reading, and a field of the config.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict
from optax.losses import huber_loss

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.relations import attention_inputs, layer_params
from mim_jax.masking.redundancy import all_alive, drop_redundant, take_alive
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import teachers, vit
from mim_jax.models.progressive_vit import ProgressiveFeatures, encode_progressively
from mim_jax.models.teachers import ViTTeacher
from mim_jax.targets.features import normalized_features
from mim_jax.targets.relations import RELATIONS, divergence, relation_logits

_DISTANCES = {"smooth_l1": huber_loss, "l2": lambda x, y: jnp.square(x - y)}
_REDUNDANCY_OF = ("contrastive", "reconstructive", "student")

Alive = tuple[TokenMask, ...]  # for each masking depth the patches that are left from there on


class HybridDistill(Objective):
    """A student of two frozen teachers: the output of a contrastive one, the token relations of a masked autoencoder.

    The features of CLIP or DeiT (`contrastive`) give discrimination: the student's final tokens regress theirs. The
    relations inside MAE (`reconstructive`) give diversity: at intermediate layers, each head's softmax of `Q K^T` is
    taught by that of the same head and layer. On the way the student drops its most redundant patches, more of them the
    deeper ("progressive redundant token masking"); both losses see the patches that are left where they apply.

    Read into the sources: that cosines between the contrastive teacher's patches say which are redundant, all shares
    and depths, smooth L1 on targets normalised without affine parameters, the divergence, and the layer it applies to;
    and, without a field of their own, that the class token takes part in both losses and that a patch is redundant
    beside those still there. Of the weights 1 and 1 it is not certain which is whose.

    Both teachers see the whole image, and the masked autoencoder only up to the last layer it is asked about. Choosing
    patches and the loss both run the contrastive teacher, of which the compiler makes one pass; with
    `accumulation_steps` there are two, the first over the whole batch.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 with CLIP and MAE ViT-B/16."""
        return ConfigDict(
            dict(
                model=vit.default_config(),
                contrastive=teachers.section("clip_vit_b16"),
                reconstructive=teachers.section("mae_vit_b16"),
                alpha=1.0,  # weight of the features' loss
                beta=1.0,  # weight of the relations' loss
                # Before these blocks (None: the first, and those after one and two thirds) so large a share of all
                # patches is left.
                masking_depths=optional(tuple),
                keep_shares=(1.0, 0.85, 0.7),
                redundancy_of="contrastive",  # whose patches at that depth: contrastive, reconstructive or student
                feature_loss="smooth_l1",  # or "l2"
                normalize_features=True,  # targets, without affine parameters
                teacher_final_norm=True,  # targets are taken after the teacher's final norm (CLIP's: on all tokens)
                relations=("query_key",),  # and "value_value", "query_query", "key_key": the mean of all
                relation_layers=optional(tuple),  # from 0; None: the last one before two thirds of the depth
                reverse_divergence=False,  # KL(student || teacher) for KL(teacher || student)
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = vit.build(config)
        depth = self.encoder.depth
        self.depths = _default(config.masking_depths, (0, depth // 3, 2 * depth // 3))
        self.layers = _default(config.relation_layers, (max(2 * depth // 3 - 1, 0),))
        self._check(config)
        self.counts = tuple(round(share * self.encoder.num_patches) for share in config.keep_shares)
        whole = {name: teachers.build(config[name], config) for name in ("contrastive", "reconstructive")}
        for name, teacher in whole.items():
            self._check_teacher(name, teacher)
        # Of the masked autoencoder the last layer's projections are needed, and the input of that layer.
        needed = max(layer + 1 for layer in self.layers)
        if config.redundancy_of == "reconstructive":
            needed = max(needed, *self.depths)
        self.contrastive = whole["contrastive"]
        self.reconstructive = teachers.build(config.reconstructive, config, until=needed)
        self.teachers = {"contrastive": self.contrastive, "reconstructive": self.reconstructive}
        self.projection = None
        if self.contrastive.encoder.width != self.encoder.width:
            self.projection = nn.Dense(
                self.contrastive.encoder.width,
                dtype=self.encoder.compute.jax_dtype,
                kernel_init=find_scheme(config.model.init_scheme).kernel,
            )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `projection` (where widths differ); `teacher`: `contrastive`, `reconstructive`."""
        rngs = iter(jax.random.split(rng, 4))
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        params = {"encoder": self.encoder.init(next(rngs), images)["params"]}
        if self.projection is not None:
            tokens = jnp.zeros((1, 1, self.encoder.width), jnp.float32)
            params["projection"] = self.projection.init(next(rngs), tokens)["params"]
        return {"params": params, "teacher": {name: t.init(next(rngs)) for name, t in self.teachers.items()}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> Alive | None:
        """The least redundant patches from each masking depth on; None where all are kept. Nothing is random."""
        del rng, clock
        images, total = batch["image"], self.encoder.num_patches
        if all(count == total for count in self.counts):
            return None
        source, prefix = self.config.redundancy_of, int(self.encoder.class_token)
        seen = {}
        if source != "student":
            until = max(self.depths)
            seen = _observe(self.teachers[source], variables["teacher"][source], images, self.depths, until).inputs
        alive, chosen = all_alive(images.shape[0], total), []
        for depth, count in zip(self.depths, self.counts, strict=True):
            if count < alive.num_keep:
                if source == "student":
                    tokens = self._student_at(variables, images, depth, chosen)
                else:
                    tokens = take_alive(seen[depth], alive, prefix)
                alive = drop_redundant(tokens[:, prefix:], alive, count)
            chosen.append(alive)
        return tuple(chosen)

    def loss(self, variables: Variables, batch: Batch, masks: Alive | None, rng: jax.Array, clock: Clock):
        """`alpha * L_c + beta * L_m`, in `aux["terms"]` as "discrimination" and "diversity"; a weight 0 leaves one out.

        `masks` may be made by hand: for each of `masking_depths` a `TokenMask` of the patches alive from there on, each
        among those of the one before; or None, to keep all. `aux["prediction"]` and `aux["target"]` are the features
        of the class token and the patches alive at the end.
        """
        del clock
        images, params, teacher = batch["image"], variables["params"], variables["teacher"]
        alive = {} if masks is None else dict(zip(self.depths, masks, strict=True))
        student = encode_progressively(
            self.encoder, params["encoder"], images, alive=alive, inputs=self.layers, rng=rng
        )
        loss, aux = jnp.zeros((), jnp.float32), {"terms": {}, "latent": student.tokens}
        if self.config.alpha > 0.0:
            prediction = student.tokens
            if self.projection is not None:
                prediction = self.projection.apply({"params": params["projection"]}, prediction)
            aux["prediction"] = prediction.astype(jnp.float32)
            aux["target"] = self._features(teacher, images, masks)
            distance = _DISTANCES[self.config.feature_loss](aux["prediction"], aux["target"]).mean()
            aux["terms"]["discrimination"] = distance
            loss = loss + self.config.alpha * distance
        if self.config.beta > 0.0:
            aux["terms"]["diversity"] = self._diversity(params["encoder"], student, teacher, images, alive)
            loss = loss + self.config.beta * aux["terms"]["diversity"]
        return loss, aux

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images, no patch dropped; `pooled` is what `model.pool` says, after the final norm."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))

    def _features(self, teacher: Variables, images: jax.Array, masks: Alive | None) -> jax.Array:
        """The contrastive teacher's output for the tokens alive at the end, `[B, (1 +) K, C]` float32."""
        depth = self.contrastive.encoder.depth
        found = _observe(self.contrastive, teacher["contrastive"], images, (depth, *self._observed("contrastive")))
        target = found.tokens if self.config.teacher_final_norm else found.inputs[depth]
        target = take_alive(target, None if masks is None else masks[-1], int(self.encoder.class_token))
        # PyTorch's default epsilon.
        return normalized_features(target, 1e-5) if self.config.normalize_features else target.astype(jnp.float32)

    def _diversity(
        self,
        params: Any,
        student: ProgressiveFeatures,
        teacher: Variables,
        images: jax.Array,
        alive: dict[int, TokenMask],
    ) -> jax.Array:
        """The divergence between the relations of the tokens alive at each layer, mean over layers and relations.

        Rows and columns of dropped tokens are left out before the softmax, which makes the rest of a row sum to 1.
        """
        frozen = jax.lax.stop_gradient(teacher["reconstructive"])
        observed = (*self.layers, *self._observed("reconstructive"))
        theirs = _observe(self.reconstructive, frozen, images, observed, until=max(observed)).inputs
        losses = []
        for layer in self.layers:
            here = [mask for depth, mask in alive.items() if depth <= layer]
            tokens = take_alive(theirs[layer], here[-1] if here else None, int(self.encoder.class_token))
            relations = (
                _relations(self.reconstructive.encoder, frozen, layer, tokens),
                _relations(self.encoder, params, layer, student.inputs[layer]),
            )
            for name in self.config.relations:
                pair = [relation_logits(inputs, name) for inputs in relations]
                losses.append(divergence(*(reversed(pair) if self.config.reverse_divergence else pair)))
        return sum(losses) / len(losses)

    def _student_at(self, variables: Variables, images: jax.Array, depth: int, chosen: list[TokenMask]) -> jax.Array:
        """The student's tokens before block `depth`, with what has been dropped till there."""
        params = jax.lax.stop_gradient(variables["params"]["encoder"])
        alive = dict(zip(self.depths, chosen, strict=False))
        seen = encode_progressively(self.encoder, params, images, alive=alive, inputs=(depth,), until=depth)
        return jax.lax.stop_gradient(seen.inputs[depth])

    def _observed(self, name: str) -> tuple[int, ...]:
        """Before which blocks a teacher says what is redundant: the same ones wherever it is run."""
        return self.depths if self.config.redundancy_of == name else ()

    def _check(self, config: ConfigDict) -> None:
        depth = self.encoder.depth
        if config.model.position == "rope" or config.model.relative_bias:
            raise ConfigError("model.position is 'rope' or model.relative_bias is True; dropped tokens need 'sincos'.")
        if min(config.alpha, config.beta) < 0.0 or config.alpha + config.beta <= 0.0:
            raise ConfigError(f"alpha is {config.alpha} and beta {config.beta}; none may be negative, nor both be 0.")
        shares = tuple(config.keep_shares)
        if len(shares) != len(self.depths):
            raise ConfigError(f"keep_shares {shares} has not one share for each of masking_depths {self.depths}.")
        if list(self.depths) != sorted(self.depths) or not all(0 <= d < depth for d in self.depths):
            raise ConfigError(f"masking_depths is {self.depths}; give rising blocks from 0 to {depth - 1}.")
        if list(shares) != sorted(shares, reverse=True) or not all(0.0 < share <= 1.0 for share in shares):
            raise ConfigError(f"keep_shares is {shares}; give falling shares in (0, 1].")
        if round(shares[-1] * self.encoder.num_patches) < 1:
            raise ConfigError(f"keep_shares is {shares}, which leaves no patch of {self.encoder.num_patches}.")
        if not self.layers or not all(0 <= layer < depth for layer in self.layers):
            raise ConfigError(f"relation_layers is {self.layers}; give layers from 0 to {depth - 1}.")
        if not config.relations or not set(config.relations) <= set(RELATIONS):
            raise ConfigError(f"relations is {tuple(config.relations)}; choose of {', '.join(RELATIONS)}.")
        for key, choices in (("feature_loss", _DISTANCES), ("redundancy_of", _REDUNDANCY_OF)):
            if config[key] not in choices:
                raise ConfigError(f"{key} is {config[key]!r}; choose one of {', '.join(choices)}.")

    def _check_teacher(self, name: str, teacher: ViTTeacher) -> None:
        keys = ["grid", "depth", "class_token"] + (["heads"] if name == "reconstructive" else [])
        for key in keys:
            ours, theirs = (getattr(encoder, key) for encoder in (self.encoder, teacher.encoder))
            if ours != theirs:
                raise ConfigError(
                    f"The student's {key} is {ours}, that of the teacher {name!r} {theirs}; choose a model and a "
                    f"{name}.name of one size."
                )
        pools = teacher.encoder.pool == "mean" and teacher.encoder.class_token
        if name == "contrastive" and pools and self.config.teacher_final_norm:
            raise ConfigError(
                f"The final norm of the teacher {self.config.contrastive.name!r} is that of its patches' mean, not of "
                "tokens; set teacher_final_norm=False."
            )


def _default(value: tuple[int, ...] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    return default if value is None else tuple(value)


def _observe(
    teacher: ViTTeacher, params: Any, images: jax.Array, inputs: tuple[int, ...], until: int | None = None
) -> ProgressiveFeatures:
    """What a teacher makes of the intact images, without gradient."""
    params = jax.lax.stop_gradient(params)
    found = encode_progressively(teacher.encoder, params, teacher.prepare(images), inputs=inputs, until=until)
    return jax.lax.stop_gradient(found)


def _relations(encoder: vit.ViT, params: Any, layer: int, x: jax.Array):
    """Queries, keys and values of one block for its input."""
    block = layer_params(params["stack"], layer)
    return attention_inputs(block, x, norm_epsilon=encoder.norm_epsilon, dtype=encoder.compute.jax_dtype)
