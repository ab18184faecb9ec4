"""Checkpoints of liuxingbin/dbot: a ViT under timm's names, fine-tuned or not."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS, classifier, norm, timm_encoder
from mim_jax.interop.layout import Context, Ignored, Layout


def layout(context: Context) -> Layout:
    """Rules for the encoder, and for the classifier of downstream tasks.

    A fine-tuned network has a single norm, `fc_norm`, of the mean over patches; where the objective has no such norm it
    becomes the encoder's own.
    """
    context.require_backbone("vit")
    model, encoder = context.config.model, context.encoder
    rules, fixed = context.positions("pos_embed", encoder, model.width, model.class_token)
    head, ignored = classifier("head", context)
    pooled_norm = "params/norm" in context.parts
    return Layout(
        rules=(
            *rules,
            *timm_encoder("", encoder, context),
            *(norm("fc_norm", "params/norm") if pooled_norm else ()),
            *head,
        ),
        fixed=tuple(fixed),
        ignored=(*ignored, Ignored(r"^mask_token$", "the mask token has no use in the intact image")),
        may_miss=(f"{encoder}/mask_token",),
        renames=WRAPPERS if pooled_norm else (*WRAPPERS, (r"^fc_norm\.", "norm.")),
    )
