"""The encoders a config's `model.backbone` can name, what each offers, and what the methods ask of one.

Adding a backbone is a module with `default_config()` (its `model` section) and `build(config, **options)`, and a row
of `BACKBONES`.
"""

from __future__ import annotations

import importlib
from typing import Any

from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.models import conv_vit, vit
from mim_jax.models.encoder import Encoder

#: What each backbone offers beside encoding whole images, in the words of `NEEDS`. A module has its backbone's name.
BACKBONES: dict[str, frozenset[str]] = {
    "vit": frozenset({"whole_images", "token_dropping", "mask_tokens", "plain_vit"}),
    "conv_vit": frozenset({"whole_images", "token_dropping"}),
    "swin": frozenset({"whole_images", "mask_tokens"}),
    "resnet": frozenset({"whole_images", "masked_maps"}),
    "convnext": frozenset({"whole_images", "masked_maps"}),
    "crate": frozenset({"whole_images", "mask_tokens", "crate"}),
}

#: What a method or task may need of an encoder (`Objective.encoder_needs`), and how a refusal says it.
NEEDS: dict[str, str] = {
    "whole_images": "encodes whole images",
    "token_dropping": "encodes visible patches alone",
    "mask_tokens": "puts mask tokens in the place of hidden patches",
    "masked_maps": "keeps hidden places empty in every feature map of a convolutional network",
    "plain_vit": "works on the tokens, positions or attention of a plain ViT",
    "crate": "inverts the layers of CRATE one by one",
}


def supporting(need: str) -> list[str]:
    """Names of the backbones that offer `need`."""
    return [name for name, offers in BACKBONES.items() if need in offers]


def check(objective_name: str, need: str | None, name: str) -> None:
    """Raises ConfigError, saying why, unless backbone `name` exists and offers what the objective needs."""
    if need is None:
        raise ConfigError(f"{objective_name} has an encoder of its own, not model.backbone {name!r}; do not set it.")
    _check_name(name)
    if need not in BACKBONES[name]:
        raise ConfigError(
            f"{objective_name} {NEEDS[need]}, which model.backbone {name!r} cannot do; choose "
            f"{' or '.join(supporting(need))}."
        )


def default_config() -> ConfigDict:
    """The `model` section of a ViT-B/16 with what "conv_vit" needs beside it (`stages`), for methods made for both."""
    model = vit.default_config()
    model.stages = conv_vit.stage_config()
    return model


def section_of(name: str, own: ConfigDict) -> ConfigDict:
    """The `model` section of backbone `name`, for an objective whose own section is `own`.

    What that has beyond every key of the backbone stays, so that a config may change `model.backbone` alone.
    """
    if own.backbone == name:
        return own
    section = module_of(name).default_config()
    if set(section) <= set(own):
        for key, value in own.items(preserve_field_references=True):
            if key not in section:
                section[key] = value
    return section


def build(config: ConfigDict, **options: Any) -> Encoder:
    """The encoder of `config.model.backbone`; `options` go to its module's `build`.

    Raises:
      ConfigError: the objective cannot use that backbone, or its sizes do not fit.
    """
    return _module(config).build(config, **options)


def build_supervised(config: ConfigDict) -> tuple[Encoder, bool]:
    """The encoder as classifiers use it, and whether a new norm follows the pooling.

    Modules whose encoder changes for that, or wants that norm, say so by a `build_supervised` of their own.
    """
    module = _module(config)
    return module.build_supervised(config) if hasattr(module, "build_supervised") else (module.build(config), False)


def module_of(name: str) -> Any:
    """The module `mim_jax.models.<name>` of a backbone."""
    return importlib.import_module(f"mim_jax.models.{name}")


def _module(config: ConfigDict) -> Any:
    _check_name(config.model.backbone)
    return module_of(config.model.backbone)


def _check_name(name: str) -> None:
    if name not in BACKBONES:
        raise ConfigError(f"model.backbone is {name!r}; choose one of {', '.join(BACKBONES)}.")
