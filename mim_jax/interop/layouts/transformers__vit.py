"""`ViTModel` of transformers, and `ViTForImageClassification` for tasks that classify by the class token."""

from __future__ import annotations

from mim_jax.interop.blocks import (
    TRANSFORMERS_FREE,
    TRANSFORMERS_RENAMES,
    classifier,
    transformers_config,
    transformers_encoder,
)
from mim_jax.interop.layout import Context, Ignored, Layout


def layout(context: Context) -> Layout:
    """Rules for the encoder, and for the classifier of downstream tasks."""
    context.require_backbone("vit")
    model, encoder = context.config.model, context.encoder
    # Its classifier reads the class token after the final norm: the head of no other objective means the same.
    classifies = context.is_task and model.pool == "class" and "state/batch_norm" not in context.parts
    if classifies:
        prefix, architecture = "vit.", "ViTForImageClassification"
        head, ignored = classifier("classifier", context)
    else:
        prefix, architecture = "", "ViTModel"
        head, ignored = [], (Ignored(r"^classifier\.", "this objective has no classifier of this kind", quiet=False),)
    rules, fixed = context.positions(f"{prefix}embeddings.position_embeddings", encoder, model.width, model.class_token)
    config = transformers_config("vit", architecture, context)
    if classifies:
        config["num_labels"] = context.config.num_classes
    return Layout(
        rules=(*rules, *transformers_encoder(prefix, encoder, context), *head),
        fixed=tuple(fixed),
        ignored=(*ignored, Ignored(r"(^|\.)pooler\.", "the pooler belongs to no encoder here")),
        may_miss=(f"{encoder}/mask_token",),
        renames=(*TRANSFORMERS_RENAMES, (r"^vit\.", ""), (r"^(?!classifier\.)", prefix)),
        config=config,
        free_config=TRANSFORMERS_FREE,
    )
