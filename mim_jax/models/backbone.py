"""The encoder that a config's `model.backbone` names, for methods that work with more than one kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.models import conv_vit, vit

Encoder = vit.ViT | conv_vit.ConvViT

_BUILDERS: dict[str, Callable[..., Encoder]] = {"conv_vit": conv_vit.build, "vit": vit.build}


def default_config() -> ConfigDict:
    """The `model` section of a ViT-B/16 with what the other kinds need beside it (`stages`: "conv_vit")."""
    model = vit.default_config()
    model.stages = conv_vit.stage_config()
    return model


def build(config: ConfigDict, **options: Any) -> Encoder:
    """The encoder of `config.model.backbone`; `options` go to its module's `build`.

    Raises:
      ConfigError: there is no such backbone, or its sizes do not fit.
    """
    name = config.model.backbone
    if name not in _BUILDERS:
        raise ConfigError(f"model.backbone is {name!r}; choose one of {', '.join(_BUILDERS)}.")
    return _BUILDERS[name](config, **options)
