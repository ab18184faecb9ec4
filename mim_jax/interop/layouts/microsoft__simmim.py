"""Checkpoints of microsoft/SimMIM: pre-training with a ViT or a Swin Transformer, and fine-tuned Swin Transformers."""

from __future__ import annotations

import numpy as np

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, classifier, pixel_shuffle_head, timm_encoder
from mim_jax.interop.layout import Context, Fixed, Layout, Rule
from mim_jax.interop.swin_blocks import BUFFERS, output_patch, swin_encoder
from mim_jax.layers.position import relative_index


def layout(context: Context) -> Layout:
    """Rules for the encoder and the pixel head; for a task those of a fine-tuned Swin Transformer."""
    if context.config.model.backbone == "swin":
        return _swin(context)
    context.require_backbone("vit")
    model, encoder = context.config.model, context.encoder
    rules, fixed = context.positions("encoder.pos_embed", encoder, model.width, model.class_token, optional=True)
    if model.relative_bias:
        index = np.asarray(relative_index(context.grid, model.class_token), np.int64)
        remedy = "set image_size and model.patch_size to those of the file"
        name, path = "encoder.rel_pos_bias.relative_position_index", f"{encoder}/relative_bias/index"
        fixed.append(Fixed(name, path, index, remedy, tolerance=0.0))
    head, ignored = pixel_shuffle_head("decoder.0", context)
    return Layout(
        rules=(
            *rules,
            *timm_encoder("encoder.", encoder, context, gammas=("gamma_1", "gamma_2")),
            Rule(("encoder.mask_token",), f"{encoder}/mask_token", axes.TOKEN, may_drop=True),
            Rule(("encoder.rel_pos_bias.relative_position_bias_table",), f"{encoder}/relative_bias/table"),
            *head,
        ),
        fixed=tuple(fixed),
        ignored=ignored,
        renames=WRAPPERS,
    )


def _swin(context: Context) -> Layout:
    # Fine-tuned models have no prefix; of those that were pre-trained the official code strips it.
    prefix = "" if context.is_task else "encoder."
    pixels, no_pixels = pixel_shuffle_head("decoder.0", context, output_patch(context))
    classes, no_classes = classifier("head", context)
    return Layout(
        rules=(*swin_encoder(prefix, context.encoder, context), *pixels, *classes),
        ignored=(*no_pixels, *no_classes, BUFFERS),
        renames=(
            *WRAPPERS,
            (r"^encoder\.", "") if context.is_task else (r"^(?=mask_token$|patch_embed\.|layers\.|norm\.)", prefix),
        ),
    )
