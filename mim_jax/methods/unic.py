"""UNIC: "Universal Classification Models via Multi-teacher Distillation", Sariyildiz et al., ECCV 2024.

arXiv 2408.05088; official code naver/unic.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import NamedSections
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.unit import unit
from mim_jax.models import teachers, vit
from mim_jax.models.class_features import class_and_patches
from mim_jax.models.ema import cosine_momentum
from mim_jax.models.projector_ladder import KINDS, ProjectorLadders
from mim_jax.models.teachers import ViTTeacher
from mim_jax.targets.features import normalized_features
from mim_jax.targets.standardization import initial_moments, standardize
from mim_jax.targets.teacher_dropping import teacher_weights

_CLASS_TOKEN_STD = 1e-6  # DINOv2's


class UNIC(Objective):
    """Distils several frozen teachers into one encoder, from images without labels and without any mask.

    For every teacher, the class token and the patches have heads on every block, whose outputs are summed and compared
    with the teacher's class feature and patches, each channel of which is standardised by running statistics. Of each
    image, teachers but the one it is worst at are dropped at random.

    The teachers are the sections of `config.teachers`: by default "dino", "deit3", "ibot" and "dbot", all ViT-B/16.
    Take one out with `teachers.dbot.enabled=False`; set another's `name` and `weights` to put it in the place of one,
    or under a new name to add it: `--config.teachers.clip.name=clip_vit_b16 --config.teachers.clip.weights=FILE`, or
    in a config file `config.teachers.clip = dict(name="clip_vit_b16", weights=FILE)`.

    A step costs a pass over every teacher, a training step of the encoder, and one of the heads: four pairs of ladders
    for a ViT-B/16 have 1.7 times its parameters and, on patches, 0.8 times its products.

    What differs from the official code: in its last block drop path takes a fixed number of images out of the batch,
    because DINOv2's blocks do so above a rate of 0.1, where 0.1 is once it is rounded; here every block draws for each
    image by itself, at the same rates. It normalises the weights of kept teachers on each device by itself; here that
    is done, like the standardisation, over the global (micro-)batch. With accumulation the statistics move once a
    micro-batch. The encoder's final norm has no part in the distillation and stays as it starts, without scale and
    shift; it is applied by `encode`, and is no parameter here.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 and the four teachers of the paper, whose weights are to be named."""
        model = vit.default_config()
        model.update(position="learned", init_scheme="dinov2", drop_path=0.1)
        sections = NamedSections(template=_teacher_section)
        for name in ("dbot", "deit3", "dino", "ibot"):
            sections[name] = _teacher_section(f"{name}_vit_b16")
        return ConfigDict(
            dict(
                model=model,
                teachers=sections,
                ladder=dict(hidden_ratio=1.0, last_hidden_ratio=4.0),  # of the heads' width to the encoder's
                cosine_weight=0.5,
                smooth_l1_weight=0.5,
                teacher_drop=0.5,  # probability that an image does not learn from a teacher it is not worst at
                # Weight of the new batch in the statistics: along half a cosine over the run. At 1 the first step,
                # whose targets are not standardised, copies the batch's; 0 and 0 freeze them.
                statistics_momentum=1.0,
                statistics_end_momentum=0.001,
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = vit.build(config, final_norm=False)
        if not self.encoder.class_token:
            raise ConfigError("model.class_token is False, but the student's class token is distilled; set it to True.")
        if not 0.0 <= config.teacher_drop <= 1.0:
            raise ConfigError(f"teacher_drop is {config.teacher_drop}; it must lie in [0, 1].")
        self.teachers = _build_teachers(config, self.encoder)
        width, compute = self.encoder.width, self.encoder.compute
        hidden, last_hidden = (int(width * config.ladder[key] + 0.5) for key in ("hidden_ratio", "last_hidden_ratio"))
        if min(hidden, last_hidden) < 1:
            raise ConfigError("ladder.hidden_ratio and ladder.last_hidden_ratio must leave at least one channel.")
        widths = tuple((name, teacher.encoder.width) for name, teacher in self.teachers.items())
        self.ladder = ProjectorLadders(widths, hidden, last_hidden, config.model.init_scheme, compute)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `ladder`; the frozen `teacher`s; and, in `state`, the `statistics` of their features."""
        encoder_rng, token_rng, ladder_rng, teacher_rng = jax.random.split(rng, 4)
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        encoder = dict(self.encoder.init(encoder_rng, images)["params"])
        encoder["class_token"] = _CLASS_TOKEN_STD * jax.random.normal(token_rng, (self.encoder.width,), jnp.float32)
        layers = jnp.zeros((self.encoder.depth, 1, 1 + self.encoder.num_patches, self.encoder.width), jnp.float32)
        rngs = jax.random.split(teacher_rng, len(self.teachers))
        return {
            "params": {"encoder": encoder, "ladder": self.ladder.init(ladder_rng, layers)["params"]},
            "teacher": {name: t.init(rng) for (name, t), rng in zip(self.teachers.items(), rngs, strict=True)},
            "state": {
                "statistics": {
                    name: {kind: initial_moments(teacher.encoder.width) for kind in KINDS}
                    for name, teacher in self.teachers.items()
                }
            },
        }

    def teach(self, variables: Variables, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        """Every teacher's `{"class": [B, C], "patch": [B, N, C]}`, float32, before they are standardised."""
        return {
            name: class_and_patches(teacher, variables["teacher"][name], batch["image"])
            for name, teacher in self.teachers.items()
        }

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> jax.Array:
        """No patch is hidden; these are the draws of teacher dropping, uniform in [0, 1), `[B, T]` float32.

        Teachers are in the order of their sorted names. An image's draw below `teacher_drop` drops that teacher, unless
        it is the image's worst. The official code draws a number only for the others, in that order.
        """
        del variables, clock
        return jax.random.uniform(rng, (batch["image"].shape[0], len(self.teachers)), jnp.float32)

    def loss(self, variables: Variables, batch: Batch, masks: jax.Array, rng: jax.Array, clock: Clock):
        """The mean over kept pairs of image and teacher of `cosine_weight * lcos + smooth_l1_weight * lsl1`.

        Both are means of the class token's and the patches' distance; `aux["terms"]` has them over the kept pairs, and
        `aux["metrics"]` the loss of each teacher over all images and its share of what is kept. `aux["prediction"]` and
        `aux["target"]` are `{teacher: {"class": [B, C], "patch": [B, N, C]}}`, `aux["latent"]` is the last block's
        output `[B, 1 + N, D]`.
        """
        params, images = variables["params"], batch["image"]
        latent, layers = self.encoder.apply(
            {"params": params["encoder"]}, images, return_layers=True, **drop_path_rngs(rng)
        )
        prediction = self.ladder.apply({"params": params["ladder"]}, layers)
        target, statistics = self._targets(variables, batch, clock)
        distances = [feature_distances(prediction[name], target[name]) for name in self.teachers]
        lcos, lsl1 = (jnp.stack(columns, axis=1) for columns in zip(*distances, strict=True))
        losses = self.config.cosine_weight * lcos + self.config.smooth_l1_weight * lsl1
        weights = teacher_weights(losses, masks, self.config.teacher_drop)
        metrics = {}
        for name, mean, weight in zip(self.teachers, losses.mean(axis=0), weights.sum(axis=0), strict=True):
            metrics |= {f"loss_{name}": mean, f"weight_{name}": weight}
        return (weights * losses).sum(), {
            "terms": {"lcos": (weights * lcos).sum(), "lsl1": (weights * lsl1).sum()},
            "metrics": metrics,
            "state": {"statistics": statistics},
            "prediction": prediction,
            "target": target,
            "latent": latent,
        }

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Patch tokens, and the class token pooled, after the final norm."""
        tokens = self.encoder.apply({"params": variables["params"]["encoder"]}, images)
        return self.encoder.split(normalized_features(tokens, self.encoder.norm_epsilon))

    def _targets(self, variables: Variables, batch: Batch, clock: Clock) -> tuple[dict, dict]:
        """The teachers' standardised features and the statistics after this batch."""
        momentum = cosine_momentum(clock.progress, self.config.statistics_momentum, self.config.statistics_end_momentum)
        taught, targets, moved = self.taught(variables, batch), {}, {}
        for name in self.teachers:
            features = taught[name]
            old = variables["state"]["statistics"][name]
            results = {kind: standardize(features[kind], old[kind], momentum) for kind in KINDS}
            targets[name] = {kind: target for kind, (target, _) in results.items()}
            moved[name] = {kind: moments for kind, (_, moments) in results.items()}
        return jax.lax.stop_gradient((targets, moved))


def _teacher_section(name: str = "") -> ConfigDict:
    config = teachers.section(name)
    config.enabled = True
    return config


def _build_teachers(config: ConfigDict, encoder: vit.ViT) -> dict[str, ViTTeacher]:
    """The enabled teachers in the order of their names."""
    built = {}
    for name in sorted(config.teachers):
        section = config.teachers[name]
        if not section.name:  # enabled or not: whoever disables a teacher may have misspelt it
            raise ConfigError(
                f"teachers.{name} has no architecture; set teachers.{name}.name to one of "
                f"{', '.join(teachers.ARCHITECTURES)}, or, for one of the other teachers, mend the spelling."
            )
        if not section.enabled:
            continue
        built[name] = teachers.build(section, config)
        if built[name].encoder.num_patches != encoder.num_patches:
            raise ConfigError(
                f"The teacher {name!r} sees {built[name].encoder.num_patches} patches, the student "
                f"{encoder.num_patches}; remove teachers.{name}.image_size or change its patch_size."
            )
    if not built:
        raise ConfigError("There are no teachers; enable or add one under config.teachers.")
    return built


def feature_distances(prediction: dict[str, jax.Array], target: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Cosine distance and smooth-L1 (beta 1) of each image `[B]`; means of class token and patches."""

    def per_token(kind: str) -> tuple[jax.Array, jax.Array]:
        ours, theirs = prediction[kind], target[kind]
        cosine = 1.0 - (unit(ours) * unit(theirs)).sum(axis=-1)
        return cosine, optax.losses.huber_loss(ours, theirs, delta=1.0).mean(axis=-1)

    (class_cosine, class_l1), (patch_cosine, patch_l1) = per_token("class"), per_token("patch")
    return 0.5 * (class_cosine + patch_cosine.mean(axis=1)), 0.5 * (class_l1 + patch_l1.mean(axis=1))
