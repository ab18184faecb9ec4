"""`IJepaModel` of transformers: I-JEPA's target encoder."""

from __future__ import annotations

from mim_jax.interop.blocks import TRANSFORMERS_FREE, TRANSFORMERS_RENAMES, transformers_config, transformers_encoder
from mim_jax.interop.layout import Context, Ignored, Layout


def layout(context: Context) -> Layout:
    """Rules for the target encoder: the EMA teacher of a pre-training method, else the encoder."""
    context.require_backbone("vit")
    model = context.config.model
    has_teacher = not context.is_task and "teacher/encoder" in context.parts
    encoder = "teacher/encoder" if has_teacher else context.encoder
    rules, fixed = context.positions("embeddings.position_embeddings", encoder, model.width, model.class_token)
    return Layout(
        rules=(*rules, *transformers_encoder("", encoder, context)),
        fixed=tuple(fixed),
        ignored=(Ignored(r"^pooler\.", "the pooler belongs to no encoder here"),),
        may_miss=(f"{encoder}/mask_token",),
        renames=(*TRANSFORMERS_RENAMES, (r"^ijepa\.", "")),
        config=transformers_config("ijepa", "IJepaModel", context),
        free_config=TRANSFORMERS_FREE,
    )
