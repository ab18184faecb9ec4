"""Checkpoints of seanie12/self-distillation: encoders under the names of transformers' `ViTModel`.

The official code reads the student's start, decoder included, from facebook/vit-mae-base, whose names it knows as well;
and the teacher from a checkpoint of the first stage, known here under the prefix `teacher.`. Any other objective takes
the student's encoder.
"""

from __future__ import annotations

import dataclasses

from mim_jax.interop.blocks import transformers_encoder
from mim_jax.interop.layout import Context, Ignored, Layout
from mim_jax.interop.layouts import transformers__vit_mae as vit_mae


def layout(context: Context) -> Layout:
    """Rules of transformers' MAE, and for the teacher."""
    base = vit_mae.layout(context)
    rules, fixed, ignored = [], [], (Ignored(r"(^|\.)pooler\.", "the pooler belongs to no encoder here"),)
    if "teacher" in context.teachers:
        teacher, part = context.of_teacher("teacher")
        model = teacher.config.model
        rules, fixed = teacher.positions("teacher.embeddings.position_embeddings", part, model.width, model.class_token)
        rules += transformers_encoder("teacher.", part, teacher)
    else:
        ignored += (Ignored(r"^teacher\.", "only the student is used here", quiet=False),)
    return dataclasses.replace(
        base,
        rules=(*base.rules, *rules),
        fixed=(*base.fixed, *fixed),
        ignored=(*base.ignored, *ignored),
        containers=("model", "teacher", "state_dict"),
        renames=(*base.renames, (r"^teacher\.(?:state_dict\.)?(?:vit\.)?", "teacher.")),
        config=None,
    )
