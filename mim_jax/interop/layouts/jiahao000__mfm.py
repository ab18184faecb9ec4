"""Pre-training checkpoints of Jiahao000/MFM with a ViT."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS, pixel_shuffle_head, timm_encoder
from mim_jax.interop.layout import Context, Layout


def layout(context: Context) -> Layout:
    """Rules for the encoder and for the pixel head; the restoration tasks' are the same."""
    context.require_backbone("vit")
    model, encoder = context.config.model, context.encoder
    rules, fixed = context.positions("encoder.pos_embed", encoder, model.width, model.class_token, optional=True)
    head, ignored = pixel_shuffle_head("decoder.0", context)
    return Layout(
        rules=(*rules, *timm_encoder("encoder.", encoder, context), *head),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=(f"{encoder}/mask_token",),
        renames=WRAPPERS,
    )
