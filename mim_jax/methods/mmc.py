"""MMC-style: "Masked Momentum Contrastive Learning for Zero-shot Semantic Understanding".

Wu et al. 2023, arXiv 2308.11448. No official code has been released, and this is not the paper's recipe to the letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.batch_norm import Statistics, initial_statistics, normalize_batch
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.corruption import REPLACEMENTS, CorruptedViews, Corruption, corrupt, two_views
from mim_jax.masking.rectangles import RectangleSampler
from mim_jax.masking.token_mask import TokenMask, take_tokens
from mim_jax.models import pixel_decoder, pixel_head, prototype_head, vit
from mim_jax.models.ema import copy_tree, cosine_momentum, move_teacher
from mim_jax.models.projection_head import EPSILON, ProjectionHead
from mim_jax.targets.contrast import info_nce
from mim_jax.targets.pixels import masked_mean, masked_pictures, pixel_target
from mim_jax.targets.prototypes import cross_entropy, moved_centre, sharpened

VIEWS = ("image", "view2")
DISTIL_TARGETS = ("class", "patch")


class MMC(Objective):
    """Two corrupted views for the student, the same two intact for its EMA teacher, and three losses between them.

    From the abstract: masked image modelling (which makes the patches of one object alike), momentum self-distillation
    (which hands the global feature's meaning to the local ones) and global contrast, for patch features that segment
    without training. All else is our reading. From the same lab's public code are group masking of 50 to 70 %, what
    replaces hidden patches, the linear head with an L1 loss, and projector, predictor and loss of the contrast, which
    are MoCo v3's. Guesses: the form of the distillation (DINO's, from the class token to hidden patches), the weights,
    the schedule of the teacher, that the teacher's encoder is the one to evaluate. Most of it are fields below.

    Per image and step the encoder passes twice over all tokens with gradients and twice without. The student's logits
    over 8192 prototypes take 3.9 MB of float32 for the 118 of 196 patches that are hidden, per image and view.

    BatchNorm normalises each view by itself over the global batch, in the teacher too, and moves the running statistics
    twice a step, view 1 first; nothing reads them here. The contrast's negatives are the other images of the global
    batch. Under gradient accumulation both are those of the micro-batch, and the centre moves with every one.
    """

    encoder_collection = "teacher"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-S/16."""
        model = vit.default_config()
        model.update(vit.vit_size("S"))
        return ConfigDict(
            dict(
                model=model,
                decoder=pixel_decoder.default_config(),  # read with drop_tokens alone
                projector=dict(hidden=1024, output=256),  # the hidden width of the predictor too
                prototypes=prototype_head.default_config(),
                mask_ratio=0.6,
                mask_ratio_spread=0.0,  # 0.1: the lab's 50 to 70 %, for each image; its losses then run over all tokens
                max_rectangle=0.3,  # longest side of a masked rectangle, as a share of the grid's; GMML's
                replacement="mask_token",  # of hidden patches; or "zeros", "noise", "other_image" in the pixels
                drop_tokens=False,  # True: encode visible tokens only, as MAE; they, not hidden ones, are distilled to
                distil_target="class",  # or "patch": the teacher's at the same place (iBOT)
                mim_weight=1.0,
                distil_weight=1.0,
                contrast_weight=1.0,
                student_temperature=0.1,
                teacher_temperature=(0.04, 0.07),  # from, to; in a straight line
                teacher_temperature_warmup=0.1,  # share of the run that takes
                centre_momentum=0.9,
                contrast_temperature=0.2,
                ema_momentum=0.996,  # at first
                ema_momentum_end=1.0,  # along half a cosine
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self._check(config)
        self.encoder = vit.build(config, mask_token=config.replacement == "mask_token" and not config.drop_tokens)
        self.sampler = RectangleSampler(
            self.encoder.grid, config.mask_ratio, config.mask_ratio_spread, config.max_rectangle
        )
        compute, projector = self.encoder.compute, config.projector
        self.prototypes = prototype_head.build(config.prototypes, self.encoder.init_scheme, compute)
        # The same two layers; the projector's output is normalised as well.
        self.projector = self.predictor = ProjectionHead(projector.hidden, projector.output, compute)
        self.head = None if config.drop_tokens else pixel_head.build(config, self.encoder, self.encoder.init_scheme)
        self.decoder = pixel_decoder.build(config, self.encoder) if config.drop_tokens else None

    def batch_spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Two views of each image: `image` and `view2`."""
        spec = super().batch_spec(batch_size)
        return {**spec, "view2": spec["image"]}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `head` (or `decoder`), `prototypes`, `projector`, `predictor`; the teacher starts as a
        copy. `state`: the running statistics and the `centre` of the prototypes."""
        encoder_rng, head_rng, prototype_rng, projector_rng, predictor_rng, mask_rng = jax.random.split(rng, 6)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        hidden = self.sampler(mask_rng, 1)
        ids = hidden.ids_keep if self.config.drop_tokens else None
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, ids_keep=ids)
        params = {"encoder": encoder["params"]}
        if self.decoder is None:
            params["head"] = self.head.init(head_rng, latent)["params"]
        else:
            params["decoder"] = self.decoder.init(head_rng, latent, hidden)["params"]
        params["prototypes"] = self.prototypes.init(prototype_rng, latent)["params"]
        sizes = self.config.projector
        statistics = initial_statistics(sizes.hidden)
        pooled, projected = (jnp.zeros((1, width), jnp.float32) for width in (self.encoder.width, sizes.output))
        params["projector"] = self.projector.init(projector_rng, pooled, statistics, train=False)["params"]
        params["predictor"] = self.predictor.init(predictor_rng, projected, statistics, train=False)["params"]
        return {
            "params": params,
            "teacher": {name: copy_tree(params[name]) for name in ("encoder", "prototypes", "projector")},
            "state": {
                "centre": jnp.zeros((self.config.prototypes.count,), jnp.float32),
                "projector_statistics": statistics,
                "output_statistics": initial_statistics(sizes.output),
                "predictor_statistics": copy_tree(statistics),
            },
        }

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> CorruptedViews:
        """Rectangles of each view by itself. `loss` also takes a `TokenMask` for both views, or a pair of them."""
        del variables, clock
        count = batch["image"].shape[0]

        def draw(rng: jax.Array) -> Corruption:
            mask_rng, seed_rng = jax.random.split(rng)
            return Corruption(self.sampler(mask_rng, count), jax.random.bits(seed_rng, (count,), jnp.uint32))

        return CorruptedViews(*map(draw, jax.random.split(rng)))

    def loss(self, variables: Variables, batch: Batch, masks: CorruptedViews, rng: jax.Array, clock: Clock):
        """The weighted sum of `mim`, `distil` and `contrast`, each the mean over both views.

        `aux["prediction"]`, `aux["target"]` and `aux["latent"]` are of view 1.
        """
        config, params, teacher, state = self.config, variables["params"], variables["teacher"], variables["state"]
        images, corruptions = [batch[name] for name in VIEWS], two_views(masks)
        rngs = [None if rng is None else jax.random.fold_in(rng, number) for number in (0, 1)]
        latents = [self._student(params, *view) for view in zip(images, corruptions, rngs, strict=True)]
        # The teacher sees the intact views: else there would be nothing more global in it than in the student.
        clean = [jax.lax.stop_gradient(self.encoder.apply({"params": teacher["encoder"]}, x)) for x in images]

        predictions = [self._predict(params, *view) for view in zip(latents, corruptions, strict=True)]
        targets = [pixel_target(x, self.encoder.patch_size, norm_pix=False) for x in images]
        mim = _mean(
            masked_mean(jnp.abs(prediction - target).mean(axis=-1), corruption.hidden.mask)
            for prediction, target, corruption in zip(predictions, targets, corruptions, strict=True)
        )
        distil, centre = self._distil(variables, latents, clean, corruptions, self._teacher_temperature(clock))
        contrast, statistics = self._contrast(variables, latents, clean)
        loss = config.mim_weight * mim + config.distil_weight * distil + config.contrast_weight * contrast
        return loss, {
            "terms": {"mim": mim, "distil": distil, "contrast": contrast},
            "prediction": predictions[0],
            "target": targets[0],
            "latent": latents[0],
            "pooled": jnp.concatenate([latent[:, 0] for latent in latents]),
            "state": {**state, **statistics, "centre": centre},
        }

    def update(self, variables: Variables, clock: Clock) -> Variables:
        """`teacher <- m * teacher + (1 - m) * student`, `m` from `ema_momentum` to `ema_momentum_end`."""
        momentum = cosine_momentum(clock.progress, self.config.ema_momentum, self.config.ema_momentum_end)
        return move_teacher(variables, momentum)

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images from the teacher, the only one to see such in training."""
        return self.encoder.split(self.encoder.apply({"params": variables["teacher"]["encoder"]}, images))

    def reconstruct(self, variables: Variables, batch: Batch, masks: CorruptedViews) -> dict[str, jax.Array]:
        """View 1: hidden patches from the head, visible ones from the image."""
        corruption = two_views(masks).view1
        latent = self._student(variables["params"], batch["image"], corruption, None)
        prediction = self._predict(variables["params"], latent, corruption)
        return masked_pictures(batch["image"], prediction, corruption.hidden.mask, self.encoder.patch_size)

    def _student(self, params: Variables, images: jax.Array, corruption: Corruption, rng: jax.Array | None):
        """Tokens `[B, 1 + N, D]` of the corrupted images; of their visible patches, `[B, 1 + K, D]`, if they drop."""
        hidden, replacement, masking = corruption.hidden, self.config.replacement, {}
        if self.config.drop_tokens:
            masking = {"ids_keep": hidden.ids_keep}
        elif replacement == "mask_token":
            masking = {"hidden": hidden.mask}
        else:
            images = corrupt(images, corruption, self.encoder.patch_size, replacement)
        return self.encoder.apply({"params": params["encoder"]}, images, **masking, **drop_path_rngs(rng))

    def _predict(self, params: Variables, latent: jax.Array, corruption: Corruption) -> jax.Array:
        """Pixels of all patches, `[B, N, p*p*C]` float32."""
        if self.decoder is not None:
            return self.decoder.apply({"params": params["decoder"]}, latent, corruption.hidden)
        return self.head.apply({"params": params["head"]}, latent[:, 1:]).astype(jnp.float32)

    def _distil(
        self,
        variables: Variables,
        latents: Sequence[jax.Array],
        clean: Sequence[jax.Array],
        corruptions: CorruptedViews,
        temperature: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Student patches towards the teacher's class token, or its patch there, of the same view; and the centre."""
        centre, losses, seen, weights = variables["state"]["centre"], [], [], []
        for latent, intact, corruption in zip(latents, clean, corruptions, strict=True):
            tokens, ids, counted = self._distilled(latent[:, 1:], corruption.hidden)
            if self.config.distil_target == "class":
                source, taught = intact[:, :1], jnp.ones((intact.shape[0], 1), bool)
            else:
                source = intact[:, 1:] if ids is None else take_tokens(intact[:, 1:], ids)
                taught = counted
            logits = self.prototypes.apply({"params": variables["params"]["prototypes"]}, tokens)
            theirs = self.prototypes.apply({"params": variables["teacher"]["prototypes"]}, source)
            target = sharpened(theirs, centre, temperature)
            losses.append(masked_mean(cross_entropy(logits, target, self.config.student_temperature), counted))
            seen.append(theirs)
            weights.append(taught)
        seen, weights = jnp.concatenate(seen, axis=1), jnp.concatenate(weights, axis=1)
        return _mean(losses), moved_centre(centre, seen, weights, self.config.centre_momentum)

    def _distilled(self, patches: jax.Array, hidden: TokenMask):
        """Which of the student's patches are distilled to: tokens `[B, M, D]`, their places, and which of them count.

        Where all images hide equally many, the prototypes are spared the rest; else the places are None, all.
        """
        if self.config.drop_tokens:
            tokens, ids = patches, hidden.ids_keep
        elif hidden.num_keep is None:
            return patches, None, hidden.mask
        else:
            tokens, ids = take_tokens(patches, hidden.ids_hidden), hidden.ids_hidden
        return tokens, ids, jnp.ones(tokens.shape[:2], bool)

    def _contrast(
        self, variables: Variables, latents: Sequence[jax.Array], clean: Sequence[jax.Array]
    ) -> tuple[jax.Array, dict[str, Statistics]]:
        """Each view's query against the other view's keys, and the running statistics after both queries."""
        params, state = variables["params"], variables["state"]
        statistics = {name: value for name, value in state.items() if name.endswith("_statistics")}
        queries, keys = [], []
        for latent in latents:
            query, statistics = self._project(params["projector"], latent[:, 0], statistics)
            query, moved = self.predictor.apply(
                {"params": params["predictor"]}, query, statistics["predictor_statistics"], train=True
            )
            queries.append(query)
            statistics = {**statistics, "predictor_statistics": moved}
        for intact in clean:
            # By the batch's own statistics, like the momentum encoder of MoCo v3.
            keys.append(self._project(variables["teacher"]["projector"], intact[:, 0], statistics)[0])
        temperature = self.config.contrast_temperature
        pairs = zip(queries, reversed(keys), strict=True)
        return _mean(info_nce(query, key, temperature) for query, key in pairs), statistics

    def _project(self, params: Variables, tokens: jax.Array, statistics: dict[str, Statistics]):
        hidden, output = statistics["projector_statistics"], statistics["output_statistics"]
        x, hidden = self.projector.apply({"params": params}, tokens, hidden, train=True)
        x, output = normalize_batch(x, output, EPSILON)
        return x, {**statistics, "projector_statistics": hidden, "output_statistics": output}

    def _teacher_temperature(self, clock: Clock) -> jax.Array:
        start, end = self.config.teacher_temperature
        warmup = self.config.teacher_temperature_warmup
        return start + (end - start) * (jnp.minimum(clock.progress / warmup, 1.0) if warmup > 0.0 else 1.0)

    @staticmethod
    def _check(config: ConfigDict) -> None:
        if not config.model.class_token:
            raise ConfigError("model.class_token is False; MMC contrasts class tokens.")
        for key, choices in (("replacement", REPLACEMENTS), ("distil_target", DISTIL_TARGETS)):
            if config[key] not in choices:
                raise ConfigError(f"{key} is {config[key]!r}; choose one of {', '.join(choices)}.")
        if config.drop_tokens and config.mask_ratio_spread:
            raise ConfigError(
                f"mask_ratio_spread is {config.mask_ratio_spread}, so that images keep different numbers of tokens, "
                "which drop_tokens cannot drop; set one of the two to 0 or False."
            )
        if config.drop_tokens and config.replacement != "mask_token":
            raise ConfigError(
                f"replacement is {config.replacement!r}, but drop_tokens replaces nothing; set one of the two."
            )
        if config.drop_tokens and config.model.relative_bias:
            raise ConfigError("model.relative_bias is True; it needs all patches, but drop_tokens drops some.")
        temperatures = tuple(config.teacher_temperature)
        if len(temperatures) != 2 or min(temperatures) <= 0.0:
            raise ConfigError(f"teacher_temperature is {temperatures}; give two positive numbers, from and to.")
        for key in ("student_temperature", "contrast_temperature"):
            if config[key] <= 0.0:
                raise ConfigError(f"{key} is {config[key]}; it must be positive.")
        for key in ("centre_momentum", "ema_momentum", "ema_momentum_end", "teacher_temperature_warmup"):
            if not 0.0 <= config[key] <= 1.0:
                raise ConfigError(f"{key} is {config[key]}; it must lie in [0, 1].")
        for key in ("hidden", "output"):
            if config.projector[key] < 1:
                raise ConfigError(f"projector.{key} is {config.projector[key]}; it must be at least 1.")


def _mean(views: Iterable[jax.Array]) -> jax.Array:
    first, second = views
    return 0.5 * (first + second)
