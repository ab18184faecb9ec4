"""CLIP as a teacher whose every token is taken to the space it shares with texts (CAE v2, arXiv 2211.09799)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, FrozenTeacher, Variables
from mim_jax.errors import ConfigError
from mim_jax.models import teachers
from mim_jax.models.teachers import Encoder, ViTTeacher


class ProjectedEncoder(Encoder):
    """An encoder and the projection CLIP has for its class token, which is what weights are read into."""

    def __init__(self, config: ConfigDict, width: int | None):
        super().__init__(config)
        self.width = width

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "projection" (where there is one)}}`."""
        encoder_rng, projection_rng = jax.random.split(rng)
        params = super().init(encoder_rng, batch)["params"]
        if self.width is not None:
            shape = (self.encoder.width, self.width)
            kernel = jax.random.normal(projection_rng, shape, jnp.float32) * self.encoder.width**-0.5
            params["projection"] = {"kernel": kernel}
        return {"params": params}


class ProjectedTeacher(FrozenTeacher):
    """A frozen ViT whose tokens, all of them after the final norm, are projected.

    Attributes: `section`, `objective`, `layout` and `encoder` as of `ViTTeacher`, and the tokens' `width`.
    """

    def __init__(self, teacher: ViTTeacher, width: int | None):
        self._teacher, self._projects = teacher, width is not None
        self.section, self.layout, self.encoder = teacher.section, teacher.layout, teacher.encoder
        self.constants = teacher.constants
        self.objective = ProjectedEncoder(teacher.objective.config, width)
        self.width = teacher.encoder.width if width is None else width

    def take(self, variables: Variables) -> Any:
        """Its weights from variables of `objective`."""
        params = {"encoder": self._teacher.take(variables)}
        return {**params, "projection": variables["params"]["projection"]} if self._projects else params

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Tokens `[B, 1 + N, width]` float32 of `images [B, H, W, C]` as the student's batch has them."""
        tokens = self._teacher(params["encoder"], images).tokens.astype(jnp.float32)
        return tokens @ jax.lax.stop_gradient(params["projection"]["kernel"]) if self._projects else tokens


def build(section: ConfigDict, config: ConfigDict, width: int | None) -> ProjectedTeacher:
    """The teacher a `section` of a run's `config` names; its tokens projected to `width`, or as they are if None.

    Raises:
      ConfigError: there is no such architecture, or sizes do not fit.
    """
    if width is not None and width < 1:
        raise ConfigError(f"target_width is {width}; it must be at least 1, or None for tokens as they are.")
    return ProjectedTeacher(teachers.build(section, config), width)
