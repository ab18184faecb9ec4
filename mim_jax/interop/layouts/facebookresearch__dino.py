"""facebookresearch/dino, and iBOT, whose encoder is the same.

Released encoders are bare; of full checkpoints the teacher is read.
"""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS
from mim_jax.interop.layout import Context, Ignored, Layout
from mim_jax.interop.teacher_blocks import dino_encoder


def layout(context: Context) -> Layout:
    """Rules for the encoder."""
    context.require_backbone("vit")
    return Layout(
        rules=tuple(dino_encoder("", context.encoder, context)),
        ignored=(
            Ignored(r"^(head\d?)\.", "the projection head of pre-training belongs to no encoder here"),
            Ignored(r"^(masked_embed|mask_token)$", "iBOT's mask token has no use in the intact image"),
        ),
        may_miss=(f"{context.encoder}/mask_token",),
        containers=("teacher", "model", "state_dict"),
        renames=((r"^teacher\.", ""), *WRAPPERS, (r"^backbone\.", "")),
    )
