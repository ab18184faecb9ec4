"""`CLIPVisionModel` of transformers, and the image half of its `CLIPModel`."""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS
from mim_jax.interop.layout import Context, Ignored, Layout, Rule
from mim_jax.interop.teacher_blocks import (
    CLIP_TEXT,
    TEACHER_FREE,
    transformers_clip_encoder,
    transformers_teacher_config,
)


def layout(context: Context) -> Layout:
    """Rules for the image encoder and, for who has it, the projection into the space shared with texts.

    transformers 5 leaves out the prefix `vision_model.` in memory.
    """
    context.require_backbone("vit")
    model, kernel = context.config.model, "params/projection/kernel"
    projection = [Rule(("visual_projection.weight",), kernel, axes.LINEAR)] if kernel in context.shapes else []
    return Layout(
        rules=(*transformers_clip_encoder("", context.encoder, context), *projection),
        ignored=(
            CLIP_TEXT,
            Ignored(r"^visual_projection\.", "the projection to texts belongs to no encoder here"),
            Ignored(r"position_ids$", "positions are counted here"),
        ),
        may_miss=(f"{context.encoder}/mask_token",),
        renames=(*WRAPPERS, (r"^vision_model\.", "")),
        config=transformers_teacher_config(
            "clip_vision_model",
            "CLIPVisionModel",
            context,
            hidden_act=model.activation,
            intermediate_size=int(model.width * model.mlp_ratio + 0.5),
        ),
        free_config=TEACHER_FREE,
    )
