"""Checkpoints of UCSC-VLAA/DMAE: an MAE under its own names, and the heads of its aligned blocks.

The official code loads the teacher, an MAE, from another file; its tensors are known by the prefix "teacher.".
"""

from __future__ import annotations

import dataclasses

from mim_jax.interop.blocks import linear, timm_encoder
from mim_jax.interop.layout import Context, Ignored, Layout, Rule
from mim_jax.interop.layouts import facebookresearch__mae as mae

_HEADS = "aligned_feature_projection_heads"
_ALIGNMENT = "params/alignment/"


def layout(context: Context) -> Layout:
    """MAE's rules, those of the heads, and those of the teacher's blocks that are run."""
    base = mae.layout(context)
    rules, fixed = _heads(context), []
    if "teacher" in context.teachers and not context.is_task:
        theirs, part = context.of_teacher("teacher")
        model = theirs.config.model
        more, fixed = theirs.positions("teacher.pos_embed", part, model.width, model.class_token)
        rules += [*more, *timm_encoder("teacher.", part, theirs)]
        unused = Ignored(r"^teacher\.(decoder_|mask_token$)", "the teacher's decoder is not run")
    else:
        unused = Ignored(r"^teacher\.", "the teacher has no use here")
    heads = Ignored(rf"^{_HEADS}\.", "heads on the way to a teacher have no use here", quiet=False)
    return dataclasses.replace(
        base,
        rules=(*base.rules, *rules),
        fixed=(*base.fixed, *fixed),
        ignored=(*base.ignored, unused, heads),
        containers=(*base.containers, "teacher"),
    )


def _heads(context: Context) -> list[Rule]:
    """Of every aligned pair, in order: a Linear by itself, or one with two."""
    paths = [path.removeprefix(_ALIGNMENT) for path in context.shapes if path.startswith(_ALIGNMENT)]
    rules = []
    for number in range(len({path.split("/")[0] for path in paths})):
        name, path = f"{_HEADS}.{number}", f"{_ALIGNMENT}head{number}"
        if f"head{number}/fc2/kernel" in paths:
            rules += [*linear(f"{name}.fc1", f"{path}/fc1"), *linear(f"{name}.fc2", f"{path}/fc2")]
        else:
            rules += linear(name, f"{path}/fc1")
    return rules
