"""Checkpoints of keyu-tian/SparK: pre-training ("spark style"), the encoder alone ("timm style"), fine-tuning.

Those of fine-tuning also have an average of everything, "ema", which goes to objectives that keep one.
"""

from __future__ import annotations

import dataclasses
import re

from mim_jax.errors import WeightsError
from mim_jax.interop.blocks import WRAPPERS, classifier, norm
from mim_jax.interop.cnn_blocks import CONVOLUTION, COUNTERS, batch_norm, convnext_encoder, convolution, resnet_encoder
from mim_jax.interop.layout import Context, Ignored, Layout, Rule

_ENCODERS = {"resnet": resnet_encoder, "convnext": convnext_encoder}
_HEADS = {"resnet": "fc", "convnext": "head"}  # the classifier of the official fine-tuning
_PREFIX, _AVERAGE = "sparse_encoder.sp_cnn.", "ema."
_OTHERS = r"sparse_encoder\.|dense_decoder\.|densify_|mask_tokens\.|imn_[ms]$|norm_black$|fc\.|head\.|ema\."
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
    # SparK's own ConvNeXt calls a classifier "fc", as ResNets do.
    head_rename = (rf"^((?:{re.escape(_AVERAGE)})?)fc\.", rf"\1{_HEADS[backbone]}.")
    head, ignored = classifier(_HEADS[backbone], context)
    rules = [*_ENCODERS[backbone](prefix, context.encoder, context), *head]
    if context.is_task and {"params/encoder", "teacher/encoder"} <= set(context.parts):
        rules += [_of_average(rule) for rule in rules]
    else:
        ignored += (Ignored(rf"^{re.escape(_AVERAGE)}", "no average of the weights is kept here", quiet=False),)
    return Layout(
        rules=(*rules, *_densify(context), *_decoder()),
        ignored=(
            *ignored,
            Ignored(r"^(imn_m|imn_s|norm_black)$", "the official code does not use it"),
            COUNTERS,
        ),
        containers=("module", "model", "state_dict", "ema"),
        renames=(*WRAPPERS, rename, head_rename),
    )


def _of_average(rule: Rule) -> Rule:
    """The rule of the average of what `rule` is of, a parameter or a statistic."""
    collection, _, rest = rule.path.partition("/")
    path = f"{'teacher' if collection == 'params' else 'state/averaged'}/{rest}"
    return dataclasses.replace(rule, names=tuple(f"{_AVERAGE}{name}" for name in rule.names), path=path)


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
