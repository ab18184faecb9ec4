"""A frozen classifier whose decisions are learned from (DeiT, G2SD's second stage)."""

from __future__ import annotations

from typing import Any

import jax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, FrozenTeacher, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.models import teachers
from mim_jax.models.classifier import Classifier
from mim_jax.models.teachers import ViTTeacher, cast_matrices


class ClassifierWeights(Objective):
    """A classifier by itself, which is what the weights of a teacher are read into."""

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.classifier = Classifier(config)
        self.encoder = self.classifier.encoder

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "norm" (mean pooling only), "head"}}`."""
        return self.classifier.init(rng, batch["image"])

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images, normalised as the classifier wants them."""
        return self.classifier(variables, images)[0]


class ClassifierTeacher(FrozenTeacher):
    """A frozen classifier of as many classes as the student's.

    Attributes: `section`, `objective`, `layout` and `encoder` as of `ViTTeacher`. Logits decide: its head is float32
    whatever its encoder is.
    """

    def __init__(self, encoder: ViTTeacher):
        self._encoder, self.section, self.layout = encoder, encoder.section, encoder.layout
        self.constants = encoder.constants
        self.objective = ClassifierWeights(encoder.objective.config)
        self.encoder = self.objective.encoder

    def take(self, variables: Variables) -> Any:
        """Its weights from variables of `objective`."""
        params = variables["params"]
        return {**params, "encoder": cast_matrices(params["encoder"], self.encoder.compute.jax_dtype)}

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Logits `[B, classes]` float32 of `images [B, H, W, C]` as the student's batch has them; without gradients."""
        variables = {"params": jax.lax.stop_gradient(params)}
        _, logits, _ = self.objective.classifier(variables, self._encoder.prepare(images))
        return jax.lax.stop_gradient(logits)


def build(section: ConfigDict, config: ConfigDict) -> ClassifierTeacher:
    """The teacher a `section` of a run's `config` names, with its `num_classes`.

    Raises:
      ConfigError: there is no such architecture, or its sizes do not fit.
    """
    encoder = teachers.build(section, config)
    if encoder.encoder.num_registers:
        raise ConfigError(
            f"The teacher {section.name!r} also classifies by its distillation token, which is not read here; choose "
            "one without."
        )
    return ClassifierTeacher(encoder)
