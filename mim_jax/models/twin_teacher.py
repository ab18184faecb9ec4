"""A frozen network of the student's own architecture as a teacher, such as what an earlier run made of it."""

from __future__ import annotations

from ml_collections import ConfigDict, FrozenConfigDict

from mim_jax.fields import optional
from mim_jax.models.teachers import Architecture, Encoder, ViTTeacher, teacher_config


def section() -> ConfigDict:
    """The config section of such a teacher; all its sizes are those of `model`."""
    return ConfigDict(
        dict(
            weights="",  # a run's directory, a weights file read through `layout`, or "random"
            layout=optional(str),  # None: the method's own
            dtype=optional(str),  # of its computation and its matrices; None: that of `compute`
        )
    )


def build(section: ConfigDict, config: ConfigDict, layout: str) -> ViTTeacher:
    """The teacher for the student of a run's `config`; `layout` is that of weights files where `section` has none."""
    own = FrozenConfigDict(teacher_config(section, config))
    return ViTTeacher(section, Encoder(own), Architecture(layout, {}, constants=None))
