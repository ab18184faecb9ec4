"""The image encoder of openai/CLIP: the state_dict of its archives."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS
from mim_jax.interop.layout import Context, Ignored, Layout, Rule
from mim_jax.interop.teacher_blocks import CLIP_TEXT, clip_encoder


def layout(context: Context) -> Layout:
    """Rules for the image encoder and, for who has it, the projection into the space shared with texts."""
    context.require_backbone("vit")
    kernel = "params/projection/kernel"
    projection = [Rule(("visual.proj",), kernel)] if kernel in context.shapes else []
    return Layout(
        rules=(*clip_encoder("visual.", context.encoder, context), *projection),
        ignored=(CLIP_TEXT, Ignored(r"^visual\.proj$", "the projection to texts belongs to no encoder here")),
        may_miss=(f"{context.encoder}/mask_token",),
        renames=WRAPPERS,
    )
