"""Checkpoints of keyu-tian/SparK: pre-training ("spark style"), the encoder alone ("timm style"), fine-tuning."""

from __future__ import annotations

import re

from mim_jax.errors import WeightsError
from mim_jax.interop.blocks import WRAPPERS, classifier, norm
from mim_jax.interop.cnn_blocks import CONVOLUTION, COUNTERS, batch_norm, convnext_encoder, convolution, resnet_encoder
from mim_jax.interop.layout import Context, Ignored, Layout, Rule

_ENCODERS = {"resnet": resnet_encoder, "convnext": convnext_encoder}
_PREFIX = "sparse_encoder.sp_cnn."
_OTHERS = r"sparse_encoder\.|dense_decoder\.|densify_|mask_tokens\.|imn_[ms]$|norm_black$|fc\."
_LEVELS, _BLOCKS = 4, 5  # at most: of the stages' maps, and of the decoder
_TRANSPOSED = "i o h w -> h w i o"


def layout(context: Context) -> Layout:
    """Rules for the encoder, the layers that make its maps dense, the decoder, and a classifier."""
    backbone = context.config.model.backbone
    if backbone not in _ENCODERS:
        raise WeightsError(
            f"This weights layout is for model.backbone={' or '.join(map(repr, _ENCODERS))}, not {backbone!r}."
        )
    # Downstream the encoder goes by its plain names, in pre-training by the prefixed ones; either is read in both.
    prefix = "" if context.is_task else _PREFIX
    rename = (rf"^{re.escape(_PREFIX)}", "") if context.is_task else (rf"^(?!{_OTHERS})", _PREFIX)
    head, ignored = classifier("fc", context)
    return Layout(
        rules=(
            *_ENCODERS[backbone](prefix, context.encoder, context),
            *_densify(context),
            *_decoder(),
            *head,
        ),
        ignored=(
            *ignored,
            Ignored(r"^(imn_m|imn_s|norm_black)$", "the official code does not use it"),
            COUNTERS,
        ),
        containers=("module", "model", "state_dict"),
        renames=(*WRAPPERS, rename),
    )


def _densify(context: Context) -> list[Rule]:
    rules = []
    for level in range(_LEVELS):
        path = f"params/densify/map{level + 1}"
        normed = norm if f"state/densify/map{level + 1}/norm/mean" not in context.shapes else batch_norm
        rules += [
            Rule((f"mask_tokens.{level}",), f"{path}/mask_token", "1 d 1 1 -> d"),
            *normed(f"densify_norms.{level}", f"{path}/norm"),
            *convolution(f"densify_projs.{level}", f"{path}/projection"),
        ]
    return rules


def _decoder() -> list[Rule]:
    rules = []
    for number in range(_BLOCKS):
        name, path = f"dense_decoder.dec.{number}", f"params/decoder/block{number + 1}"
        rules += _with_bias(f"{name}.up_sample", f"{path}/up", _TRANSPOSED)
        for suffix, index in (("1", 0), ("2", 3)):
            rules.append(Rule((f"{name}.conv.{index}.weight",), f"{path}/conv{suffix}/kernel", CONVOLUTION))
            rules += batch_norm(f"{name}.conv.{index + 1}", f"{path}/norm{suffix}")
    return [*rules, *_with_bias("dense_decoder.proj", "params/decoder/prediction", "o i 1 1 -> i o")]


def _with_bias(name: str, path: str, pattern: str) -> list[Rule]:
    return [Rule((f"{name}.weight",), f"{path}/kernel", pattern), Rule((f"{name}.bias",), f"{path}/bias")]
