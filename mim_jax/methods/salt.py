"""SALT: "Rethinking JEPA: Compute-Efficient Video SSL with Frozen Teachers", Li et al. 2025, arXiv 2509.24317.

The second of its two stages; the first is `salt_pixel.py`. The authors' code is not public: masks, encoder, predictor
and the form of the loss are those of V-JEPA's (facebookresearch/jepa), whose EMA teacher becomes a frozen one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.layers.tubes import as_clips
from mim_jax.masking.multiblock3d import ClipMask
from mim_jax.models import tube_predictor, video_teacher
from mim_jax.models.masked_clips import MaskedClips
from mim_jax.targets.features import normalized_features


class SALT(MaskedClips):
    """From what multi-block masks leave of a clip, predicts the frozen teacher's latents of what they hide.

    The teacher sees the whole clip, once for all kinds of masks, and may be of another size than the student; if both
    are a ViT-L on clips, its pass is two fifths of a step's matrix products. The loss is the absolute error, averaged
    over both kinds of masks. Open in the paper's text and V-JEPA's practice: targets are normalised without affine
    parameters (`normalize_targets`). The authors' positions may be rotary, as V-JEPA 2's are; these are V-JEPA's, fixed
    and added.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 on images, with V-JEPA's predictor and a teacher of the same size."""
        config = super().default_config()
        config.predictor = tube_predictor.default_config()
        config.teacher = video_teacher.default_config()
        config.normalize_targets = True
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.teachers = {"teacher": video_teacher.build(config.teacher, config)}
        self.predictor = tube_predictor.build(
            config, "predictor", self.encoder, output_dim=config.teacher.width, num_kinds=len(self.samplers)
        )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "predictor"}, "teacher": {"teacher"}}`."""
        student_rng, teacher_rng = jax.random.split(rng)
        teacher = {name: teacher.init(teacher_rng) for name, teacher in self.teachers.items()}
        return {**super().init(student_rng, batch), "teacher": teacher}

    def teach(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The teacher's `latents` of all tubes `[B, N, C]`."""
        clips = as_clips(batch[self.input_name], 1)
        return {"latents": self.teachers["teacher"](variables["teacher"]["teacher"], clips)}

    def loss(self, variables: Variables, batch: Batch, masks: tuple[ClipMask, ...], rng: jax.Array, clock: Clock):
        """Mean absolute error over target tubes, `aux["terms"]["prediction"]`; see `MaskedClips._regress`."""
        del clock
        clips = as_clips(batch[self.input_name], 1)
        target = self.taught(variables, batch)["latents"]
        if self.config.normalize_targets:
            # PyTorch's default epsilon, as in V-JEPA; its networks use 1e-6.
            target = normalized_features(target, epsilon=1e-5)
        return self._regress(variables, clips, target, masks, rng, jnp.abs, "prediction")
