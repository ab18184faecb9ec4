"""facebookresearch/deit: DeiT, with the variants ":distilled" and ":3" (DeiT-III)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, classifier, norm, timm_encoder
from mim_jax.interop.layout import Context, Ignored, Layout, Rule

VARIANTS = ("distilled", "3")


def layout(context: Context) -> Layout:
    """Rules for the encoder, and for the classifier of downstream tasks.

    DeiT-III's table has no row for the class token (`model.class_position=False`). The distillation token of distilled
    DeiT is a register here (`model.num_registers=1`), with its row of the table added to it.
    """
    context.require_backbone("vit")
    model, encoder = context.config.model, context.encoder
    rules, fixed = context.positions("pos_embed", encoder, model.width, model.class_token and model.class_position)
    head, ignored = classifier("head", context)
    return Layout(
        rules=(
            *rules,
            Rule(("dist_token",), f"{encoder}/registers", axes.POSITIONS),
            *timm_encoder("", encoder, context),
            *norm("fc_norm", "params/norm"),
            *head,
        ),
        fixed=tuple(fixed),
        ignored=(*ignored, Ignored(r"^head_dist\.", "the distillation head belongs to no encoder here", quiet=False)),
        may_miss=(f"{encoder}/mask_token",),
        renames=(*WRAPPERS, (r"\.gamma_([12])$", r".ls\1.gamma")),
        prepare=_place_distillation_token if context.variant == "distilled" else None,
    )


def _place_distillation_token(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the second row of the position table to the distillation token, which has it."""
    token, table = tensors.get("dist_token"), tensors.get("pos_embed")
    if token is None or table is None:
        return dict(tensors)
    return {**tensors, "dist_token": token + table[:, 1:2], "pos_embed": np.delete(table, 1, axis=1)}
