"""Vision Transformers of timm (`vit_base_patch16_224` and its kin), with class token and learned positions."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS, classifier, norm, timm_encoder
from mim_jax.interop.layout import Context, Layout


def layout(context: Context) -> Layout:
    """Rules for the encoder, and for the classifier of downstream tasks."""
    context.require_backbone("vit")
    model = context.config.model
    rules, fixed = context.positions("pos_embed", context.encoder, model.width, model.class_token)
    head, ignored = classifier("head", context)
    return Layout(
        rules=(*rules, *timm_encoder("", context.encoder, context), *norm("fc_norm", "params/norm"), *head),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=(f"{context.encoder}/mask_token",),
        renames=WRAPPERS,
    )
