"""`Dinov2Model` of transformers; the variant ":registers" is `Dinov2WithRegistersModel`."""

from __future__ import annotations

from mim_jax.interop.blocks import TRANSFORMERS_RENAMES
from mim_jax.interop.layout import Context, Ignored, Layout
from mim_jax.interop.teacher_blocks import (
    SMOOTH_RESIZE,
    TEACHER_FREE,
    TRANSFORMERS_GATED,
    transformers_dinov2_encoder,
    transformers_teacher_config,
)

VARIANTS = ("registers",)

_RENAMES = tuple(pair for pair in TRANSFORMERS_RENAMES if ".mlp." not in pair[0].replace("\\", ""))


def layout(context: Context) -> Layout:
    """Rules for the encoder."""
    context.require_backbone("vit")
    if context.variant == "registers":
        resize, kind = SMOOTH_RESIZE, ("dinov2_with_registers", "Dinov2WithRegistersModel")
    else:  # without DINO's offset, unlike the official code
        resize, kind = None, ("dinov2", "Dinov2Model")
    return Layout(
        rules=tuple(transformers_dinov2_encoder("", context.encoder, context, resize)),
        ignored=(
            Ignored(r"^embeddings\.mask_token$", "its mask token has no use in the intact image"),
            Ignored(r"^classifier\.", "the classifier belongs to no encoder here", quiet=False),
        ),
        may_miss=(f"{context.encoder}/mask_token",),
        fused=TRANSFORMERS_GATED,
        config=transformers_teacher_config(
            *kind, context, mlp_ratio=4, use_swiglu_ffn=context.config.model.activation == "swiglu"
        ),
        free_config=(*TEACHER_FREE, "mlp_ratio"),
        renames=(*_RENAMES, (r"^dinov2(_with_registers)?\.", ""), (r"\.mlp\.weights_out\.", ".mlp.down_proj.")),
    )
