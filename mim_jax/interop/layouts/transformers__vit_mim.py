"""`ViTForMaskedImageModeling` of transformers: SimMIM on a plain ViT with learned positions.

SimMIM computes the same with model.position="learned", model.relative_bias=False, model.qkv_bias="all",
model.layer_scale=None and model.drop_path=0.
"""

from __future__ import annotations

from mim_jax.interop.blocks import (
    TRANSFORMERS_FREE,
    TRANSFORMERS_RENAMES,
    pixel_shuffle_head,
    transformers_config,
    transformers_encoder,
)
from mim_jax.interop.layout import Context, Layout


def layout(context: Context) -> Layout:
    """Rules for the encoder with its mask token, and for the pixel head."""
    context.require_backbone("vit")
    model, encoder = context.config.model, context.encoder
    rules, fixed = context.positions("vit.embeddings.position_embeddings", encoder, model.width, model.class_token)
    head, ignored = pixel_shuffle_head("decoder.0", context)
    config = transformers_config("vit", "ViTForMaskedImageModeling", context)
    return Layout(
        rules=(*rules, *transformers_encoder("vit.", encoder, context), *head),
        fixed=tuple(fixed),
        ignored=ignored,
        renames=TRANSFORMERS_RENAMES,
        config=config | {"encoder_stride": config["patch_size"]},
        free_config=TRANSFORMERS_FREE,
    )
