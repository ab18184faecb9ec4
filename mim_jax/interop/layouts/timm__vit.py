"""Vision Transformers of timm (`vit_base_patch16_224` and its kin), with class token and learned positions."""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, classifier, norm, timm_encoder
from mim_jax.interop.layout import Context, Layout, Rule


def layout(context: Context) -> Layout:
    """Rules for the encoder, and for the classifier of downstream tasks."""
    context.require_backbone("vit")
    model = context.config.model
    encoder = context.encoder
    rules, fixed = context.positions("pos_embed", encoder, model.width, model.class_token and model.class_position)
    head, ignored = classifier("head", context)
    return Layout(
        rules=(
            *rules,
            Rule(("reg_token",), f"{encoder}/registers", axes.POSITIONS),
            *timm_encoder("", encoder, context),
            *norm("norm_pre", f"{encoder}/pre_norm"),
            *norm("fc_norm", "params/norm"),
            *head,
        ),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=(f"{encoder}/mask_token",),
        renames=WRAPPERS,
    )
