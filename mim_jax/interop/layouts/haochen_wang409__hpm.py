"""Checkpoints of Haochen-Wang409/HPM: student with both decoders, and its EMA copy.

HPM itself takes both. Any other objective takes the student; the variant "ema" takes the EMA copy instead.
"""

from __future__ import annotations

import re

from mim_jax.interop.blocks import WRAPPERS, classifier, linear, mae_decoder, norm, timm_blocks, timm_encoder
from mim_jax.interop.layout import Context, Fixed, Ignored, Layout, Rule

VARIANTS = ("ema",)
_EMA = "ema_state_dict."  # its container, which no rename removes


def layout(context: Context) -> Layout:
    """Rules for the encoder and the two decoders, for student and EMA copy."""
    context.require_backbone("vit")
    has_teacher = not context.is_task and {"params/encoder", "teacher/encoder"} <= set(context.parts)
    head, ignored = classifier("head", context)
    if has_teacher:
        models = {"": "params", _EMA: "teacher"}
    else:
        models = {_EMA if context.variant else "": context.encoder.split("/")[0]}
        other = rf"^(?!{re.escape(_EMA)})" if context.variant else rf"^{re.escape(_EMA)}"
        ignored += (
            Ignored(other, f"only the {context.variant or 'student'} is used here", quiet=False),
            Ignored(r"_losspred\.", "the loss predictor has no use here", quiet=False),
        )
    rules, fixed = list(head), []
    for prefix, collection in models.items():
        more_rules, more_fixed = _model(prefix, collection, context)
        rules += more_rules
        fixed += more_fixed
    return Layout(
        rules=tuple(rules),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=tuple(f"{collection}/encoder/mask_token" for collection in models.values()),
        containers=("state_dict", "ema_state_dict", "model"),
        renames=WRAPPERS,
    )


def _model(prefix: str, collection: str, context: Context) -> tuple[list[Rule], list[Fixed]]:
    config, encoder, decoder = context.config, f"{collection}/encoder", f"{collection}/decoder"
    width = context.mask_token_width(decoder)
    rules, fixed = context.positions(f"{prefix}pos_embed", encoder, config.model.width, config.model.class_token)
    more_rules, more_fixed = context.positions(f"{prefix}decoder_pos_embed", decoder, width, config.model.class_token)
    rules += [
        *more_rules,
        *timm_encoder(prefix, encoder, context),
        *mae_decoder(prefix, decoder),
        *timm_blocks(f"{prefix}decoder_blocks_losspred", decoder, stack="loss_stack"),
        *norm(f"{prefix}decoder_norm_losspred", f"{decoder}/loss_norm"),
        *linear(f"{prefix}decoder_pred_losspred", f"{decoder}/loss_prediction"),
    ]
    return rules, fixed + more_fixed
