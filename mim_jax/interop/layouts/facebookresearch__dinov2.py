"""facebookresearch/dinov2; the variant ":registers" is for encoders that have them."""

from __future__ import annotations

from mim_jax.interop.blocks import WRAPPERS
from mim_jax.interop.layout import Context, Ignored, Layout
from mim_jax.interop.teacher_blocks import DINO_RESIZE, SMOOTH_RESIZE, dino_encoder

VARIANTS = ("registers",)


def layout(context: Context) -> Layout:
    """Rules for the encoder; the two variants resize positions differently."""
    context.require_backbone("vit")
    resize = SMOOTH_RESIZE if context.variant == "registers" else DINO_RESIZE
    return Layout(
        rules=tuple(dino_encoder("", context.encoder, context, resize)),
        ignored=(
            Ignored(r"^mask_token$", "its mask token has no use in the intact image"),
            Ignored(r"^(dino_head|ibot_head)\.", "the heads of pre-training belong to no encoder here"),
        ),
        may_miss=(f"{context.encoder}/mask_token",),
        containers=("teacher", "model", "state_dict"),
        # Training checkpoints number the blocks within chunks.
        renames=((r"^teacher\.", ""), *WRAPPERS, (r"^backbone\.", ""), (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")),
    )
