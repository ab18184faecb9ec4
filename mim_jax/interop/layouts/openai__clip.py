"""The image encoder of openai/CLIP: the state_dict of its archives."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS
from mim_jax.interop.layout import Context, Ignored, Layout
from mim_jax.interop.teacher_blocks import CLIP_TEXT, clip_encoder


def layout(context: Context) -> Layout:
    """Rules for the image encoder; the projection into the space shared with texts is left out."""
    context.require_backbone("vit")
    return Layout(
        rules=tuple(clip_encoder("visual.", context.encoder, context)),
        ignored=(CLIP_TEXT, Ignored(r"^visual\.proj$", "the projection to texts belongs to no encoder here")),
        may_miss=(f"{context.encoder}/mask_token",),
        renames=WRAPPERS,
    )
