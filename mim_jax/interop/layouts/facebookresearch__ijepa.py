"""Checkpoints of facebookresearch/ijepa: context encoder, predictor and EMA target encoder.

I-JEPA itself takes all three. Any other objective takes the target encoder, which is the one to use downstream; the
variant "encoder" takes the context encoder instead.
"""

from __future__ import annotations

from mim_jax.interop import axes
from mim_jax.interop.blocks import WRAPPERS, linear, norm, timm_blocks, timm_encoder
from mim_jax.interop.layout import Context, Ignored, Layout, Rule

VARIANTS = ("encoder",)


def layout(context: Context) -> Layout:
    """Rules for both encoders and the predictor."""
    context.require_backbone("vit")
    config, predictor = context.config, "params/predictor"
    pretraining = not context.is_task and {"params/encoder", "teacher/encoder"} <= set(context.parts)
    ignored = ()
    if pretraining:
        encoders = {"encoder": "params/encoder", "target_encoder": "teacher/encoder"}
    else:
        used, unused = ("encoder", "target_encoder") if context.variant else ("target_encoder", "encoder")
        encoders = {used: context.encoder}
        ignored = (Ignored(rf"^{unused}\.", f"only {used} is used here", quiet=False),)
    predictor_width = context.mask_token_width(predictor)
    rules, fixed = context.positions("predictor.predictor_pos_embed", predictor, predictor_width, False)
    rules += [
        Rule(("predictor.mask_token",), f"{predictor}/mask_token", axes.TOKEN),
        *linear("predictor.predictor_embed", f"{predictor}/embed"),
        *timm_blocks("predictor.predictor_blocks", predictor),
        *norm("predictor.predictor_norm", f"{predictor}/norm"),
        *linear("predictor.predictor_proj", f"{predictor}/projection"),
    ]
    for name, part in encoders.items():
        more_rules, more_fixed = context.positions(f"{name}.pos_embed", part, config.model.width, False)
        rules += [*more_rules, *timm_encoder(f"{name}.", part, context)]
        fixed += more_fixed
    return Layout(
        rules=tuple(rules),
        fixed=tuple(fixed),
        ignored=ignored,
        may_miss=tuple(f"{part}/mask_token" for part in encoders.values()),
        containers=("encoder", "predictor", "target_encoder"),
        renames=WRAPPERS,
    )
