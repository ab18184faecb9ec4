"""Pre-training checkpoints of microsoft/SimMIM with a ViT."""

from __future__ import annotations

import numpy as np

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, pixel_shuffle_head, timm_encoder
from mim_jax.interop.layout import Context, Fixed, Layout, Rule
from mim_jax.layers.position import relative_index


def layout(context: Context) -> Layout:
    """Rules for the encoder with its shared relative bias, and for the pixel head."""
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
